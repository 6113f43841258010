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

/// What a closed log of so many batches is made of, last file last.
fn closed(dir: &Path, batches: usize) -> (i64, Vec<PathBuf>) {
    let log = open(dir);
    fill(&log, batches);
    log.close().unwrap();
    (log.high_watermark(), log_files(dir))
}

fn cut(path: &Path, size: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
}

/// Where batches end in a file, its beginning included.
fn boundaries(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let ends = (0..=bytes.len()).filter(|&end| is_boundary(&bytes[..end]));
    ends.map(|end| end as u64).collect()
}

/// A log tells a loss once: what it is after that is what it goes on from.
fn goes_on_quietly(dir: &Path) {
    let log = open(dir);
    assert_eq!(log.recovery_damage(), 0);
    fill(&log, 5);
    drop(log);
    let log = open(dir);
    assert_eq!((log.recovery_damage(), log.recovery_cut_bytes()), (0, 0));
    assert_eq!(read_checked(&log, 500), log.high_watermark());
}

#[test]
fn an_end_that_is_missing_between_two_batches_is_told() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), 3);
    let ends = boundaries(&log_files(dir.path())[0]);
    assert_eq!(ends.len(), 4);
    for end in ends[..3].iter().rev() {
        cut(&log_files(dir.path())[0], *end);
        let log = open(dir.path());
        assert_eq!(log.recovery_cut_bytes(), 0, "nothing was there to cut");
        assert_eq!(log.size_bytes(), *end);
        assert!(log.recovery_damage() > 0, "cut at {end}");
        log.close().unwrap();
        drop(log);
        assert_eq!(open(dir.path()).recovery_damage(), 0);
        open(dir.path()).close().unwrap();
    }
}

/// Either of the files beside the log is enough to know how far it reached.
#[test]
fn an_end_that_is_missing_is_told_by_the_index_and_by_the_snapshot() {
    for index_is_gone in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (end, files) = closed(dir.path(), 3);
        let witness = match index_is_gone {
            true => index::index_path(&files[0]),
            false => producers::snapshot_path(dir.path()),
        };
        std::fs::remove_file(witness).unwrap();
        cut(&files[0], boundaries(&files[0])[2]);
        let log = open(dir.path());
        assert!(log.high_watermark() < end);
        assert_eq!(log.recovery_damage(), 1);
        drop(log);
        goes_on_quietly(dir.path());
    }
}

#[test]
fn files_that_are_missing_are_told() {
    for which in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let (end, files) = closed(dir.path(), 100);
        assert!(files.len() > 4);
        match which {
            0 => std::fs::remove_file(&files[0]).unwrap(),
            1 => std::fs::remove_file(&files[2]).unwrap(),
            2 => std::fs::remove_file(files.last().unwrap()).unwrap(),
            _ => files
                .iter()
                .for_each(|path| std::fs::remove_file(path).unwrap()),
        }
        let log = open(dir.path());
        assert!(log.recovery_damage() > 0, "{which}");
        assert!(log.log_start() > 0 || log.high_watermark() < end);
        assert_eq!(read_checked(&log, 500), log.high_watermark());
        drop(log);
        goes_on_quietly(dir.path());
    }
}

#[test]
fn a_start_that_cannot_be_read_is_told_and_brings_no_file_back() {
    let damages: [fn(&Path); 4] = [
        |path| flip(path, 3),
        |path| cut(path, 7),
        |path| cut(path, 0),
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        fill(&log, 100);
        log.delete_before(77).unwrap();
        log.close().unwrap();
        let (first, end) = (log.inner.lock().segments[0].base_offset, 77);
        assert!((1..end).contains(&first));
        drop(log);
        damage(&log_start::path(dir.path()));
        let log = open(dir.path());
        assert_eq!(log.recovery_damage(), 1);
        assert_eq!(log.log_start(), first, "as far as files can tell");
        drop(log);
        assert_eq!(open(dir.path()).log_start(), first);
        goes_on_quietly(dir.path());
    }
}

/// The end was lost that the log start lies behind. What comes there anew is not deleted.
#[test]
fn a_start_beyond_the_end_hides_nothing_that_is_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 3);
    let end = log.high_watermark();
    log.delete_before(end).unwrap();
    drop(log);
    cut(&log_files(dir.path())[0], 0);
    let log = open(dir.path());
    assert_eq!((log.log_start(), log.high_watermark()), (0, 0));
    fill(&log, 5);
    drop(log);
    assert_eq!(open(dir.path()).log_start(), 0);
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
        prop_assert_eq!(log.recovery_damage(), 0, "nothing was lost that was on the disk");
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

    /// A disk may lose the end of a file that was closed in order, between two batches as well, and one of the files
    /// beside it. The loss is told, and what is left is a prefix.
    #[test]
    fn an_end_that_a_disk_lost_is_told(
        batches in 1usize..60,
        which: prop::sample::Index,
        at: prop::sample::Index,
        between_batches: bool,
        witness_lost in prop::option::of(any::<bool>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        fill(&log, batches);
        let before = contents(&log);
        log.close().unwrap();
        drop(log);
        let files = log_files(dir.path());
        let path = &files[which.index(files.len())];
        match witness_lost {
            Some(true) => std::fs::remove_file(index::index_path(path)).unwrap(),
            Some(false) => std::fs::remove_file(producers::snapshot_path(dir.path())).unwrap(),
            None => {}
        }
        let ends = boundaries(path);
        let size = path.metadata().unwrap().len();
        cut(path, match between_batches {
            true => ends[at.index(ends.len() - 1)],
            false => at.index(size as usize) as u64,
        });

        let log = open(dir.path());
        let after = contents(&log);
        prop_assert!(after.len() < before.len());
        prop_assert_eq!(&before[..after.len()], &after[..]);
        prop_assert!(log.recovery_damage() > 0);
        drop(log);
        goes_on_quietly(dir.path());
    }
}
