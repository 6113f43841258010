use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
pub use proptest::prelude::*;

pub use super::batch::testing::TestBatch;
use super::*;

pub fn settings() -> LogSettings {
    LogSettings {
        segment_bytes: 2_000,
        index_interval_bytes: 256,
        retention_ms: -1,
        retention_bytes: -1,
        max_message_bytes: 10_000,
        max_producer_ids: 100,
        producer_id_expiration_ms: 1_000_000,
        publish_when_synced: false,
    }
}

pub fn open(dir: &Path) -> Partition {
    Partition::open(dir, settings()).unwrap()
}

pub fn append(log: &Partition, batch: &TestBatch) -> Result<Appended, AppendError> {
    let bytes = batch.build();
    let header = batch::validate_produced(&bytes, 10_000).unwrap();
    log.append(header, &bytes)
}

/// Batches of one to four records, a second apart.
pub fn fill(log: &Partition, batches: usize) {
    for n in 0..batches {
        let start = log.high_watermark();
        let timestamps = (0..=(n as i64 % 4)).map(|r| (start + r) * 1_000).collect();
        let batch = TestBatch {
            timestamps,
            payload: 20 + n % 50,
            ..TestBatch::default()
        };
        append(log, &batch).unwrap();
    }
}

/// Reads everything and checks that it is whole, contiguous and unchanged.
pub fn read_checked(log: &Partition, max_bytes: usize) -> i64 {
    let mut offset = log.log_start();
    while offset < log.high_watermark() {
        let bytes = log.read(offset, max_bytes).unwrap();
        let mut rest: &[u8] = &bytes;
        assert!(!rest.is_empty());
        let mut first = true;
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest).unwrap();
            assert!(batch::checksum_matches(&header, rest));
            assert!(first || header.base_offset == offset);
            assert!(header.next_offset() > offset);
            offset = header.next_offset();
            first = false;
            rest = &rest[header.total_len..];
        }
    }
    offset
}

pub fn log_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    files
}

#[test]
fn reads_give_whole_batches_from_any_offset_over_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 200);
    assert!(log_files(dir.path()).len() > 5);
    for max_bytes in [1, 100, 500, 1_000_000] {
        assert_eq!(read_checked(&log, max_bytes), log.high_watermark());
    }
    for offset in 0..log.high_watermark() {
        let header = BatchHeader::parse(&log.read(offset, 1).unwrap()).unwrap();
        assert!(header.base_offset <= offset && offset < header.next_offset());
    }
    assert!(log.read(log.high_watermark(), 100).unwrap().is_empty());
    let beyond = log.read(log.high_watermark() + 1, 100);
    assert!(matches!(beyond, Err(ReadError::OutOfRange)));
}

#[test]
fn sealing_and_reopening_change_nothing_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let end = {
        let log = open(dir.path());
        fill(&log, 100);
        log.sync().unwrap();
        read_checked(&log, 300);
        log.close().unwrap();
        log.high_watermark()
    };
    let log = open(dir.path());
    assert_eq!(log.high_watermark(), end);
    fill(&log, 100);
    drop(log);
    let log = open(dir.path());
    assert!(log.high_watermark() > end);
    assert_eq!(read_checked(&log, 300), log.high_watermark());
}

#[test]
fn lost_indexes_are_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 100);
    log.close().unwrap();
    let end = log.high_watermark();
    for (n, path) in log_files(dir.path()).iter().enumerate() {
        match n % 2 {
            0 => fs::remove_file(index::index_path(path)).unwrap(),
            _ => fs::write(index::index_path(path), b"not an index").unwrap(),
        }
    }
    let log = open(dir.path());
    assert_eq!(log.high_watermark(), end);
    assert_eq!(read_checked(&log, 300), end);
}

#[test]
fn lookups_by_time_find_the_first_record_not_earlier() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 100);
    log.sync().unwrap();
    for offset in [0, 1, 7, 50, 120, log.high_watermark() - 1] {
        let found = log.offset_at(offset * 1_000).unwrap().unwrap();
        assert_eq!((found.offset, found.timestamp), (offset, offset * 1_000));
        let found = log.offset_at(offset * 1_000 - 1).unwrap().unwrap();
        assert_eq!(found.offset, offset);
    }
    let last = log.high_watermark() - 1;
    assert_eq!(log.offset_at(last * 1_000 + 1).unwrap(), None);
    assert_eq!(log.offset_of_latest_time().unwrap().unwrap().offset, last);
}

#[test]
fn lookups_by_time_go_on_behind_deleted_records() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let at = |timestamps: &[i64]| TestBatch {
        timestamps: timestamps.to_vec(),
        payload: 500,
        ..TestBatch::default()
    };
    // The latest record of the first segment is its first.
    append(&log, &at(&[9_000, 9_001])).unwrap();
    while log_files(dir.path()).len() < 3 {
        append(&log, &at(&[1_000, 1_001])).unwrap();
    }
    let last = append(&log, &at(&[8_000, 8_001, 9_500]))
        .unwrap()
        .base_offset;
    log.sync().unwrap();
    assert_eq!(log.offset_at(5_000).unwrap().unwrap().offset, 0);
    log.delete_before(1).unwrap();
    assert_eq!(log.offset_at(5_000).unwrap().unwrap().offset, 1);
    log.delete_before(2).unwrap();
    assert_eq!(log.offset_at(5_000).unwrap().unwrap().offset, last);
    log.delete_before(last + 1).unwrap();
    let found = log.offset_at(7_000).unwrap().unwrap();
    assert_eq!((found.offset, found.timestamp), (last + 1, 8_001));
    assert_eq!(log.offset_at(9_501).unwrap(), None);
}

#[test]
fn producers_are_remembered_over_a_crash_and_a_clean_restart() {
    for clean in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        let batch = |sequence| TestBatch {
            timestamps: vec![1, 2],
            producer: (5, 0, sequence),
            payload: 300,
        };
        for n in 0..20 {
            append(&log, &batch(n * 2)).unwrap();
            if n == 10 {
                log.sync().unwrap();
            }
        }
        if clean {
            log.close().unwrap();
        }
        drop(log);
        let log = open(dir.path());
        let again = append(&log, &batch(38)).unwrap();
        assert_eq!((again.base_offset, again.duplicate), (38, true));
        let gap = append(&log, &batch(44));
        assert!(matches!(gap, Err(AppendError::OutOfOrderSequence)));
        assert_eq!(append(&log, &batch(40)).unwrap().base_offset, 40);
    }
}

#[test]
fn retention_by_size_keeps_at_least_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let sized = LogSettings {
        retention_bytes: 5_000,
        ..settings()
    };
    let log = Partition::open(dir.path(), sized.clone()).unwrap();
    fill(&log, 200);
    let end = log.high_watermark();
    assert!(log.enforce_retention().unwrap() > 0);
    assert!(
        (5_000..9_000).contains(&log.size_bytes()),
        "{}",
        log.size_bytes()
    );
    assert!(log.log_start() > 0);
    assert!(matches!(log.read(0, 100), Err(ReadError::OutOfRange)));
    assert_eq!(read_checked(&log, 500), end);
    let start = log.log_start();
    drop(log);
    let log = Partition::open(dir.path(), sized).unwrap();
    assert_eq!((log.log_start(), log.high_watermark()), (start, end));
}

#[test]
fn retention_by_age_may_empty_the_log_but_never_reuses_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let aged = LogSettings {
        retention_ms: 60_000,
        ..settings()
    };
    let log = Partition::open(dir.path(), aged.clone()).unwrap();
    fill(&log, 50);
    let end = log.high_watermark();
    log.enforce_retention().unwrap();
    assert_eq!((log.log_start(), log.high_watermark()), (end, end));
    drop(log);
    let log = Partition::open(dir.path(), aged).unwrap();
    assert_eq!((log.log_start(), log.high_watermark()), (end, end));
    let fresh = TestBatch {
        timestamps: vec![now_ms()],
        ..TestBatch::default()
    };
    assert_eq!(append(&log, &fresh).unwrap().base_offset, end);
    assert_eq!(log.enforce_retention().unwrap(), 0);
}

#[test]
fn deleted_records_stay_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 100);
    assert_eq!(log.delete_before(77).unwrap(), Some(77));
    assert_eq!(log.delete_before(10).unwrap(), Some(77));
    assert_eq!(log.delete_before(1_000_000).unwrap(), None);
    assert!(matches!(log.read(76, 100), Err(ReadError::OutOfRange)));
    read_checked(&log, 100);
    drop(log);
    assert_eq!(open(dir.path()).log_start(), 77);
}

#[test]
fn only_what_is_synced_is_published_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let synced = LogSettings {
        publish_when_synced: true,
        ..settings()
    };
    let log = Partition::open(dir.path(), synced).unwrap();
    fill(&log, 3);
    assert_eq!(log.high_watermark(), 0);
    log.sync().unwrap();
    assert_eq!(log.high_watermark(), 6);
}

#[test]
fn a_closed_partition_takes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 3);
    log.mark_closed();
    let refused = append(&log, &TestBatch::default());
    assert!(matches!(refused, Err(AppendError::Closed)));
}

/// The whole log as one run of bytes, as a reader sees it.
pub fn contents(log: &Partition) -> Bytes {
    let mut all = Vec::new();
    let mut offset = log.log_start();
    while offset < log.high_watermark() {
        let bytes = log.read(offset, 1_000_000).unwrap();
        let mut rest: &[u8] = &bytes;
        while let Some(header) = BatchHeader::parse(rest) {
            offset = header.next_offset();
            rest = &rest[header.total_len..];
        }
        all.extend(bytes);
    }
    all.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_torn_or_damaged_tail_leaves_a_prefix(
        batches in 1usize..60,
        which: prop::sample::Index,
        at: prop::sample::Index,
        damage in prop::option::of(1u8..),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let before = {
            let log = open(dir.path());
            fill(&log, batches);
            contents(&log)
        };
        let files = log_files(dir.path());
        let path = &files[which.index(files.len())];
        let mut bytes = fs::read(path).unwrap();
        let at = at.index(bytes.len());
        match damage {
            // The leader epoch is the one field no checksum covers and nobody reads.
            Some(flip) => bytes[at] ^= flip,
            None => bytes.truncate(at),
        }
        fs::write(path, &bytes).unwrap();

        // The log was not closed, so that nothing tells where it ended: of a cut between two batches of the last file
        // nobody can know. Everything else is told.
        let unseen = damage.is_none() && path == files.last().unwrap() && is_boundary(&bytes);

        let log = open(dir.path());
        read_checked(&log, 500);
        let after = contents(&log);
        prop_assert!(same_but_epochs(&before[..after.len()], &after));
        let is_whole = after.len() == before.len();
        prop_assert!(is_whole || unseen || log.recovery_cut_bytes() > 0);
        let end = log.high_watermark();
        fill(&log, 5);
        drop(log);
        let log = open(dir.path());
        prop_assert!(log.high_watermark() > end);
        prop_assert_eq!(read_checked(&log, 500), log.high_watermark());
    }
}

/// Whether a file's bytes end where a batch does.
pub fn is_boundary(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(header) = BatchHeader::parse(&bytes[at..]) {
        at += header.total_len;
        if at > bytes.len() {
            return false;
        }
    }
    at == bytes.len()
}

pub fn same_but_epochs(left: &[u8], right: &[u8]) -> bool {
    let (mut left, mut right) = (left.to_vec(), right.to_vec());
    for bytes in [&mut left, &mut right] {
        let mut at = 0;
        while let Some(header) = BatchHeader::parse(&bytes[at..]) {
            bytes[at + 12..at + 16].fill(0);
            at += header.total_len;
        }
    }
    left == right
}
