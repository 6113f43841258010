//! What a log is after damage, power cuts and failed syncs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::tests::*;
use super::*;

fn damaged_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "damaged"))
        .collect()
}

fn flip(path: &Path, at: u64) {
    flip_by(path, at, 1);
}

fn flip_by(path: &Path, at: u64, bits: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
}

fn total_size(paths: &[PathBuf]) -> u64 {
    let sizes = paths.iter().map(|path| path.metadata().unwrap().len());
    sizes.sum()
}

#[test]
fn what_stands_behind_damage_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 100);
    drop(log);
    let files = log_files(dir.path());
    assert!(files.len() > 3);
    let size = total_size(&files);
    // In the first batch of the second segment.
    flip(&files[1], HEADER_LEN as u64 + 5);
    let log = open(dir.path());
    let kept = damaged_files(dir.path());
    assert_eq!(kept.len(), files.len() - 1);
    assert_eq!(total_size(&kept), size - log.size_bytes());
    assert_eq!(log.recovery_set_aside_bytes(), size - log.size_bytes());
    assert_eq!(log.recovery_cut_bytes(), log.recovery_set_aside_bytes());
    fill(&log, 5);
    log.close().unwrap();
    let log = open(dir.path());
    assert_eq!(log.recovery_set_aside_bytes(), 0);
    assert_eq!(damaged_files(dir.path()).len(), kept.len());
}

#[test]
fn a_batch_that_was_being_written_is_cut_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 3);
    drop(log);
    let file = &log_files(dir.path())[0];
    let size = file.metadata().unwrap().len();
    let whole = OpenOptions::new().write(true).open(file).unwrap();
    whole.set_len(size - 10).unwrap();
    let log = open(dir.path());
    assert!(log.recovery_cut_bytes() > 0);
    assert_eq!(log.recovery_set_aside_bytes(), 0);
    assert!(damaged_files(dir.path()).is_empty());
}

#[test]
fn producers_are_known_when_the_log_was_cut_below_their_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let batch = |sequence| TestBatch {
        timestamps: vec![1],
        producer: (5, 0, sequence),
        payload: 300,
    };
    let log = open(dir.path());
    for n in 0..20 {
        append(&log, &batch(n)).unwrap();
    }
    log.close().unwrap();
    drop(log);
    let files = log_files(dir.path());
    std::fs::remove_file(index::index_path(&files[0])).unwrap();
    let last_of_first = files[0].metadata().unwrap().len() - 1;
    flip(&files[0], last_of_first);
    let log = open(dir.path());
    let next = i32::try_from(log.high_watermark()).unwrap();
    assert!((1..19).contains(&next));
    let again = append(&log, &batch(next - 1)).unwrap();
    assert!(again.duplicate);
    let gap = append(&log, &batch(next + 1));
    assert!(matches!(gap, Err(AppendError::OutOfOrderSequence)));
    let appended = append(&log, &batch(next)).unwrap();
    assert_eq!(appended.base_offset, i64::from(next));
}

#[test]
fn after_a_failed_sync_nothing_is_taken_until_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let log = Partition::open(dir.path(), synced_settings()).unwrap();
    fill_to(&log, 3);
    log.sync().unwrap();
    let end = log.high_watermark();
    append(&log, &TestBatch::default()).unwrap();
    // A file that cannot be forced to any disk.
    let unsyncable = Arc::new(File::open("/dev/null").unwrap());
    log.inner.lock().active().file = Some(unsyncable);
    log.sync().unwrap_err();
    assert_eq!(log.high_watermark(), end);
    let refused = append(&log, &TestBatch::default());
    assert!(matches!(refused, Err(AppendError::Io(_))));
    log.sync().unwrap_err();
    log.close().unwrap_err();
    drop(log);
    let log = Partition::open(dir.path(), synced_settings()).unwrap();
    assert_eq!(log.high_watermark(), end + 1);
    append(&log, &TestBatch::default()).unwrap();
    log.sync().unwrap();
    assert_eq!(log.high_watermark(), end + 2);
}

fn synced_settings() -> LogSettings {
    LogSettings {
        publish_when_synced: true,
        ..settings()
    }
}

/// Like `fill`, for a log that publishes only what is synced.
fn fill_to(log: &Partition, batches: usize) {
    for _ in 0..batches {
        append(log, &TestBatch::default()).unwrap();
    }
}

#[test]
fn a_new_segment_is_durable_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let log = Partition::open(dir.path(), synced_settings()).unwrap();
    assert!(!log.inner.lock().new_files);
    while log_files(dir.path()).len() < 2 {
        append(&log, &TestBatch::default()).unwrap();
    }
    assert!(log.inner.lock().new_files);
    log.sync().unwrap();
    assert!(!log.inner.lock().new_files);
}

#[test]
fn no_byte_of_a_closed_log_can_change_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 5);
    let before: Vec<Bytes> = (0..log.high_watermark())
        .map(|offset| log.read(offset, 1).unwrap())
        .collect();
    log.close().unwrap();
    drop(log);
    let path = &log_files(dir.path())[0];
    for at in 0..path.metadata().unwrap().len() {
        flip(path, at);
        let log = open(dir.path());
        for (offset, expected) in before.iter().enumerate() {
            if let Ok(found) = log.read(offset as i64, 1) {
                assert!(
                    same_but_epochs(expected, &found),
                    "byte {at}, offset {offset}"
                );
            }
        }
        log.close().unwrap();
        drop(log);
        flip(path, at);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A power cut takes any part of what was not synced, or leaves zeros in
    /// its place, and may take files whose names were not synced.
    #[test]
    fn a_power_cut_takes_nothing_that_was_synced(
        before in 1usize..40,
        after in 0usize..40,
        at: prop::sample::Index,
        leaves_zeros: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let log = Partition::open(dir.path(), synced_settings()).unwrap();
        fill_to(&log, before);
        log.sync().unwrap();
        let (end, synced) = (log.high_watermark(), contents(&log));
        let kept_files = log_files(dir.path());
        let active = kept_files.last().unwrap().clone();
        let synced_size = active.metadata().unwrap().len();
        fill_to(&log, after);
        prop_assert_eq!(log.high_watermark(), end);
        drop(log);
        for path in log_files(dir.path()) {
            if !kept_files.contains(&path) {
                std::fs::remove_file(path).unwrap();
            }
        }
        let file = OpenOptions::new().write(true).open(&active).unwrap();
        let size = file.metadata().unwrap().len();
        let cut = synced_size + at.index((size - synced_size) as usize + 1) as u64;
        file.set_len(cut).unwrap();
        if leaves_zeros {
            file.set_len(size).unwrap();
        }

        let log = Partition::open(dir.path(), synced_settings()).unwrap();
        prop_assert!(log.high_watermark() >= end);
        let found = contents(&log);
        prop_assert!(found.len() >= synced.len());
        prop_assert_eq!(&found[..synced.len()], &synced[..]);
        prop_assert_eq!(read_checked(&log, 500), log.high_watermark());
    }

    /// A disk may change or lose bytes of files that were closed in order, so
    /// that nothing is scanned when they are opened again.
    #[test]
    fn what_a_disk_lost_is_told_and_never_served(
        batches in 1usize..60,
        index_files: bool,
        which: prop::sample::Index,
        at: prop::sample::Index,
        flip in 1u8..,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        fill(&log, batches);
        let before: Vec<Bytes> = (0..log.high_watermark())
            .map(|offset| log.read(offset, 1).unwrap())
            .collect();
        log.close().unwrap();
        drop(log);
        let mut files = log_files(dir.path());
        if index_files {
            files.iter_mut().for_each(|path| *path = index::index_path(path));
        }
        let path = &files[which.index(files.len())];
        let size = path.metadata().unwrap().len();
        flip_by(path, at.index(size as usize) as u64, flip);

        let log = open(dir.path());
        let mut unread = 0;
        for (offset, expected) in before.iter().enumerate() {
            match log.read(offset as i64, 1) {
                Ok(found) => prop_assert!(same_but_epochs(expected, &found), "{offset}"),
                Err(_) => unread += 1,
            }
        }
        let told = log.damaged_reads() > 0 || log.recovery_cut_bytes() > 0;
        prop_assert!(unread == 0 || told);
        // One byte costs no more than what lies between two entries of the index, and a batch on either side.
        prop_assert!(unread <= 24 || log.recovery_cut_bytes() > 0, "{unread}");
    }
}
