//! The spool as its owner sees it: order, restarts, a disk that fails, a folder that is full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::ErrorKind;
use crate::faulty::{Faults, Told};
use crate::probe::FILE as PROBE;
use crate::*;

/// Written down with every acknowledgement.
const AT_ONCE: Duration = Duration::ZERO;

struct Bench {
    dir: TempDir,
    faults: Faults,
    told: Told,
    limits: Limits,
    interval: Duration,
}

fn bench() -> Bench {
    Bench {
        dir: TempDir::new().unwrap(),
        faults: Faults::default(),
        told: Told::default(),
        limits: Limits {
            bytes_max: 1 << 20,
            segment_bytes: 400,
            group_bytes_max: 1 << 16,
            queue_appends_max: 64,
        },
        interval: AT_ONCE,
    }
}

impl Bench {
    fn open(&self) -> (Spool, Drainer) {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<(Spool, Drainer), SpoolError> {
        let mut salt = 7;
        let salts = Box::new(move || {
            salt += 1;
            salt
        });
        let deps = Deps {
            files: Arc::new(self.faults.clone()),
            observer: Arc::new(self.told.clone()),
            salts,
        };
        open(self.dir.path(), self.limits, self.interval, deps)
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .collect();
        files.sort();
        files
    }
}

fn records(numbers: std::ops::Range<u32>) -> Records {
    let mut records = Records::default();
    for number in numbers {
        let write =
            |out: &mut Vec<u8>| out.extend_from_slice(format!("record {number}").as_bytes());
        records.push(i64::from(number), write);
    }
    records
}

async fn append(spool: &Spool, numbers: std::ops::Range<u32>) {
    spool.append(records(numbers)).await.unwrap();
}

/// Drains until the spool is idle and returns what came.
async fn drained(spool: &Spool, drainer: &mut Drainer) -> Vec<u32> {
    let mut found = Vec::new();
    while !spool.is_idle() {
        let stretch = drainer.next(7, 1 << 20).await.unwrap();
        found.extend(numbers(&stretch));
        acknowledge(drainer, &stretch).await.unwrap();
    }
    found
}

/// All that was not lost is delivered.
async fn acknowledge(drainer: &mut Drainer, stretch: &Stretch) -> Result<(), SpoolError> {
    let delivered = stretch.records().len() as u64;
    drainer.acknowledge(stretch, delivered).await
}

/// Of the account: what waited and came, then what waits, was drained, is lost, was put aside. It adds up.
fn account(spool: &Spool) -> [u64; 6] {
    let Account {
        waiting_at_start,
        spooled,
        waiting,
        drained,
        lost,
        put_aside,
    } = spool.account();
    assert_eq!(
        waiting_at_start + spooled,
        waiting + drained + lost + put_aside
    );
    [waiting_at_start, spooled, waiting, drained, lost, put_aside]
}

fn numbers(stretch: &Stretch) -> Vec<u32> {
    let number = |record: &Stored| {
        let text = std::str::from_utf8(stretch.body(record)).unwrap();
        let number: u32 = text.strip_prefix("record ").unwrap().parse().unwrap();
        assert_eq!(record.at_us, i64::from(number));
        number
    };
    stretch.records().iter().map(number).collect()
}

fn all(numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.collect()
}

#[tokio::test]
async fn what_is_appended_comes_back_in_order_and_leaves_nothing_behind() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    assert!(spool.is_idle());
    for first in (0..100).step_by(10) {
        append(&spool, first..first + 10).await;
    }
    assert!(!spool.is_idle());
    let depth = spool.depth();
    assert_eq!((depth.records, depth.oldest_us), (100, Some(0)));
    assert!(bench.files("seg").len() > 3, "several segments");
    assert_eq!(drained(&spool, &mut drainer).await, all(0..100));
    assert_eq!(spool.depth(), Depth::default());
    assert_eq!(bench.files("seg"), [] as [PathBuf; 0]);
    append(&spool, 100..101).await;
    assert_eq!(drained(&spool, &mut drainer).await, [100]);
    assert_eq!(bench.told.errors(), []);
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..50).await;
    let stretch = drainer.next(20, 1 << 20).await.unwrap();
    assert_eq!(numbers(&stretch), all(0..20));
    acknowledge(&mut drainer, &stretch).await.unwrap();
    drop((spool, drainer));

    let (spool, mut drainer) = bench.open();
    assert!(!spool.is_idle(), "what is left comes first");
    assert_eq!(
        (spool.depth().records, spool.depth().oldest_us),
        (30, Some(20))
    );
    append(&spool, 50..60).await;
    assert_eq!(drained(&spool, &mut drainer).await, all(20..60));
    drop((spool, drainer));

    let (spool, mut drainer) = bench.open();
    assert!(spool.is_idle());
    append(&spool, 60..61).await;
    assert_eq!(drained(&spool, &mut drainer).await, [60], "numbers go on");
    assert_eq!(bench.told.errors(), []);
}

#[tokio::test]
async fn what_was_not_written_down_comes_again_but_nothing_else() {
    let bench = Bench {
        interval: Duration::from_secs(3_600),
        ..bench()
    };
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..10).await;
    let stretch = drainer.next(4, 1 << 20).await.unwrap();
    acknowledge(&mut drainer, &stretch).await.unwrap();
    drainer.persist().await.unwrap();
    let stretch = drainer.next(3, 1 << 20).await.unwrap();
    acknowledge(&mut drainer, &stretch).await.unwrap();
    drop((spool, drainer));
    let (spool, mut drainer) = bench.open();
    assert_eq!(drained(&spool, &mut drainer).await, all(4..10));
}

#[tokio::test]
async fn a_drainer_waits_and_loses_nothing_when_it_is_interrupted() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    for number in 0..50 {
        let waiting = tokio::time::timeout(Duration::from_micros(50), drainer.next(5, 1 << 20));
        assert!(waiting.await.is_err(), "there is nothing yet");
        append(&spool, number..number + 1).await;
        // Cut off at any place, be it after the read.
        let mut got = None;
        while got.is_none() {
            let next = drainer.next(5, 1 << 20);
            got = tokio::time::timeout(Duration::from_micros(200), next)
                .await
                .ok();
        }
        let stretch = got.unwrap().unwrap();
        assert_eq!(numbers(&stretch), [number]);
        acknowledge(&mut drainer, &stretch).await.unwrap();
    }
}

#[test]
fn appends_that_wait_together_share_a_sync() {
    let bench = bench();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (spool, _drainer) = runtime.block_on(async { bench.open() });
    // The first holds the disk; all others gather behind it.
    let appends: Vec<_> = bench.faults.while_syncs_wait(|| {
        let append = |number: u32| {
            let spool = spool.clone();
            runtime.spawn(async move { spool.append(records(number..number + 1)).await })
        };
        let appends = (0..40).map(append).collect();
        while spool.waiting() < 40 {
            std::thread::yield_now();
        }
        appends
    });
    for append in appends {
        runtime.block_on(append).unwrap().unwrap();
    }
    let syncs = bench.faults.syncs();
    assert!(syncs <= 10, "{syncs} syncs for 40 appends");
    assert_eq!(spool.depth().records, 40);
}

#[tokio::test]
async fn a_full_spool_refuses_until_there_is_room() {
    let bench = Bench {
        limits: Limits {
            bytes_max: 2_000,
            ..bench().limits
        },
        ..bench()
    };
    let (spool, mut drainer) = bench.open();
    let mut taken = 0;
    let refused = loop {
        match spool.append(records(taken..taken + 1)).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full { bytes_max: 2_000 }));
    assert!(spool.depth().bytes <= 2_000);
    assert_eq!(bench.told.errors(), [ErrorKind::Full]);
    assert_eq!(drained(&spool, &mut drainer).await, all(0..taken));
    append(&spool, taken..taken + 1).await;
    let on_disk: u64 = bench
        .files("seg")
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert_eq!(on_disk, spool.depth().bytes);
}

#[tokio::test]
async fn a_failing_disk_confirms_nothing_and_spoils_nothing() {
    for stuck in [false, true] {
        for syncs in [false, true] {
            let bench = bench();
            let (spool, mut drainer) = bench.open();
            append(&spool, 0..3).await;
            let fail = |fail| match syncs {
                true => bench.faults.syncs_fail(fail),
                false => bench.faults.disk_full(fail),
            };
            bench.faults.stuck(stuck);
            fail(true);
            for _ in 0..3 {
                let refused = spool.append(records(900..903)).await.unwrap_err();
                assert!(matches!(refused, AppendError::Disk(_)), "{refused:?}");
            }
            assert!(spool.depth().failing.is_some());
            assert_eq!(spool.depth().records, 3);
            fail(false);
            append(&spool, 3..6).await;
            assert_eq!(spool.depth().failing, None);
            bench.faults.stuck(false);
            drop((spool, drainer));

            let reopened = bench.open();
            (_, drainer) = (reopened.0.clone(), reopened.1);
            let found = drained(&reopened.0, &mut drainer).await;
            assert_eq!(found, all(0..6), "stuck {stuck}, syncs {syncs}");
            assert_eq!(
                bench
                    .told
                    .errors()
                    .iter()
                    .filter(|kind| **kind == ErrorKind::Write)
                    .count(),
                3
            );
            assert_eq!(bench.told.lost(), 0);
        }
    }
}

#[tokio::test]
async fn a_disk_that_is_back_is_found_without_an_append() {
    for syncs in [false, true] {
        let bench = bench();
        let (spool, mut drainer) = bench.open();
        append(&spool, 0..3).await;
        let fail = |fail| match syncs {
            true => bench.faults.syncs_fail(fail),
            false => bench.faults.disk_full(fail),
        };
        fail(true);
        spool.append(records(900..903)).await.unwrap_err();
        spool.probe().unwrap_err();
        assert!(spool.depth().failing.is_some(), "it still fails");
        assert!(!bench.dir.path().join(PROBE).exists(), "the disk is full");
        // As a crash leaves it.
        std::fs::write(bench.dir.path().join(PROBE), "half").unwrap();
        fail(false);
        spool.probe().unwrap();
        assert_eq!(spool.depth().failing, None);
        assert!(!bench.dir.path().join(PROBE).exists());
        assert_eq!(spool.depth().records, 3, "it is no record");
        append(&spool, 3..6).await;
        assert_eq!(drained(&spool, &mut drainer).await, all(0..6));
    }
}

#[tokio::test]
async fn a_probe_writes_as_much_as_was_refused() {
    let bench = bench();
    let (spool, _drainer) = bench.open();
    bench.faults.disk_full(true);
    spool.append(records(0..2_000)).await.unwrap_err();
    bench.faults.disk_full(false);
    bench.faults.room(20_000);
    spool.probe().unwrap_err();
    assert!(spool.depth().failing.is_some(), "the next would fail again");
    bench.faults.room(200_000);
    spool.probe().unwrap();
    assert_eq!(spool.depth().failing, None);
}

#[tokio::test]
async fn a_disk_that_works_is_not_probed_and_one_that_hangs_but_once() {
    let bench = bench();
    let (spool, _drainer) = bench.open();
    append(&spool, 0..3).await;
    let syncs = bench.faults.syncs();
    spool.probe().unwrap();
    assert_eq!(bench.faults.syncs(), syncs);
    bench.faults.syncs_fail(true);
    spool.append(records(900..903)).await.unwrap_err();
    bench.faults.syncs_fail(false);
    let hanging = bench.faults.while_syncs_wait(|| {
        let hanging = std::thread::spawn({
            let spool = spool.clone();
            move || spool.probe()
        });
        while !bench.dir.path().join(PROBE).exists() {
            std::thread::yield_now();
        }
        let second = spool.probe().unwrap_err();
        assert_eq!(second.kind(), std::io::ErrorKind::WouldBlock);
        hanging
    });
    hanging.join().unwrap().unwrap();
    assert_eq!(spool.depth().failing, None);
}

#[tokio::test]
async fn a_failed_append_leaves_an_empty_spool_idle() {
    let bench = bench();
    let (spool, _drainer) = bench.open();
    bench.faults.disk_full(true);
    spool.append(records(0..3)).await.unwrap_err();
    assert!(spool.is_idle(), "nothing is in it to be overtaken");
    assert_eq!(spool.depth().bytes, 0);
    assert_eq!(bench.files("seg"), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_position_that_cannot_be_written_holds_nobody_up() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..20).await;
    bench.faults.replacing_fails(true);
    let stretch = drainer.next(100, 1 << 20).await.unwrap();
    acknowledge(&mut drainer, &stretch).await.unwrap_err();
    assert!(spool.is_idle(), "all of it is where it belongs");
    assert_eq!(bench.told.errors(), [ErrorKind::Position]);
    assert_eq!(
        bench.files("seg"),
        [] as [PathBuf; 0],
        "a full disk gets its room back"
    );
    drop((spool, drainer));
    bench.faults.replacing_fails(false);
    let (spool, mut drainer) = bench.open();
    assert!(spool.is_idle());
    append(&spool, 20..30).await;
    assert_eq!(drained(&spool, &mut drainer).await, all(20..30));
    assert_eq!(bench.told.lost(), 0);
}

#[tokio::test]
async fn without_a_position_what_was_drained_comes_again() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..20).await;
    bench.faults.replacing_fails(true);
    let stretch = drainer.next(5, 1 << 20).await.unwrap();
    acknowledge(&mut drainer, &stretch).await.unwrap_err();
    drop((spool, drainer));
    bench.faults.replacing_fails(false);
    let (spool, mut drainer) = bench.open();
    assert_eq!(drained(&spool, &mut drainer).await, all(0..20));
}

#[tokio::test]
async fn a_damaged_position_is_told_and_everything_comes_again() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..5).await;
    let stretch = drainer.next(3, 1 << 20).await.unwrap();
    acknowledge(&mut drainer, &stretch).await.unwrap();
    drop((spool, drainer));
    std::fs::write(bench.dir.path().join("position"), b"nonsense").unwrap();
    let (spool, mut drainer) = bench.open();
    assert_eq!(bench.told.errors(), [ErrorKind::Position]);
    assert_eq!(drained(&spool, &mut drainer).await, all(0..5));
}

#[tokio::test]
async fn one_process_has_the_folder() {
    let bench = bench();
    let open = bench.open();
    let refused = bench.try_open().map(|_| ()).unwrap_err().to_string();
    assert!(
        refused.contains(&std::process::id().to_string()),
        "{refused}"
    );
    drop(open);
    bench.try_open().map(|_| ()).unwrap();
}

#[tokio::test]
async fn a_damaged_record_costs_only_itself_and_its_file_is_kept() {
    let bench = bench();
    let (spool, drainer) = bench.open();
    append(&spool, 0..30).await;
    append(&spool, 30..40).await;
    drop((spool, drainer));
    let first = bench.files("seg")[0].clone();
    flip(&first, frame::HEAD_BYTES + 2);
    let (spool, mut drainer) = bench.open();
    assert_eq!(drained(&spool, &mut drainer).await, all(1..40));
    assert_eq!(bench.told.errors(), [ErrorKind::Damaged]);
    assert_eq!(bench.told.lost(), 1);
    assert_eq!(account(&spool), [40, 0, 0, 39, 1, 0]);
    let kept = bench.files("kept");
    assert_eq!(kept, [first.with_extension("kept")]);
    let bytes = kept[0].metadata().unwrap().len();
    assert_eq!(
        spool.depth().bytes,
        bytes,
        "it counts as long as it is there"
    );
    drop((spool, drainer));
    let (spool, _drainer) = bench.open();
    assert_eq!((spool.depth().bytes, spool.is_idle()), (bytes, true));
}

#[tokio::test]
async fn a_record_that_nobody_takes_is_kept() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..2).await;
    append(&spool, 2..4).await;
    let stretch = drainer.next(2, 1 << 20).await.unwrap();
    drainer.keep(&stretch.records()[1]);
    assert_eq!(account(&spool), [0, 4, 4, 0, 0, 0], "until all of them are");
    drainer.acknowledge(&stretch, 1).await.unwrap();
    assert_eq!(account(&spool), [0, 4, 2, 1, 0, 1]);
    drop((spool, drainer));
    let (spool, mut drainer) = bench.open();
    assert_eq!(drained(&spool, &mut drainer).await, all(2..4));
    assert_eq!(bench.files("keep"), [] as [PathBuf; 0]);
    let kept = bench.files("kept");
    assert_eq!(kept.len(), 1);
    let bytes = std::fs::read(&kept[0]).unwrap();
    assert!(memchr::memmem::find(&bytes, b"record 1").is_some());
}

#[tokio::test]
async fn a_segment_that_is_gone_is_named_once_it_is_wanted() {
    let bench = bench();
    let (spool, drainer) = bench.open();
    append(&spool, 0..30).await;
    append(&spool, 30..60).await;
    append(&spool, 60..61).await;
    drop((spool, drainer));
    let files = bench.files("seg");
    assert_eq!(files.len(), 3);
    std::fs::remove_file(&files[1]).unwrap();
    let (spool, mut drainer) = bench.open();
    let found = drained(&spool, &mut drainer).await;
    assert_eq!(found, [all(0..30), all(60..61)].concat());
    assert_eq!(bench.told.lost(), 30);
    assert_eq!(account(&spool), [61, 0, 0, 31, 30, 0]);
}

#[tokio::test]
async fn a_first_segment_that_is_gone_is_missed_as_well() {
    let bench = bench();
    let (spool, drainer) = bench.open();
    append(&spool, 0..30).await;
    append(&spool, 30..60).await;
    drop((spool, drainer));
    std::fs::remove_file(&bench.files("seg")[0]).unwrap();
    let (spool, mut drainer) = bench.open();
    assert_eq!(bench.told.lost(), 30);
    assert_eq!(account(&spool), [60, 0, 30, 0, 30, 0]);
    assert_eq!(drained(&spool, &mut drainer).await, all(30..60));
    assert_eq!(bench.told.errors(), [ErrorKind::Damaged]);
}

#[tokio::test]
async fn a_segment_that_cannot_be_opened_for_now_costs_nothing_that_was_read_before_it() {
    let bench = bench();
    let (spool, drainer) = bench.open();
    append(&spool, 0..30).await;
    append(&spool, 30..60).await;
    drop((spool, drainer));
    let (spool, mut drainer) = bench.open();
    let second = bench.files("seg")[1].clone();
    let away = second.with_extension("away");
    std::fs::rename(&second, &away).unwrap();
    // The first record was read when the spool was opened.
    let mut found = Vec::new();
    for _ in 0..2 {
        let stretch = drainer.next(100, 1 << 20).await.unwrap();
        found.extend(numbers(&stretch));
        acknowledge(&mut drainer, &stretch).await.unwrap();
    }
    assert_eq!(found, all(0..30));
    drainer.next(100, 1 << 20).await.unwrap_err();
    std::fs::rename(&away, &second).unwrap();
    assert_eq!(drained(&spool, &mut drainer).await, all(30..60));
    assert_eq!(account(&spool), [60, 0, 0, 60, 0, 0]);
    assert_eq!(bench.told.lost(), 0);
}

#[tokio::test]
async fn the_account_adds_up_while_records_come_and_go_and_begins_anew_with_each_start() {
    let bench = bench();
    let (spool, mut drainer) = bench.open();
    append(&spool, 0..50).await;
    let stretch = drainer.next(20, 1 << 20).await.unwrap();
    assert_eq!(account(&spool), [0, 50, 50, 0, 0, 0]);
    acknowledge(&mut drainer, &stretch).await.unwrap();
    assert_eq!(account(&spool), [0, 50, 30, 20, 0, 0]);
    drop((spool, drainer));
    let (spool, mut drainer) = bench.open();
    assert_eq!(account(&spool), [30, 0, 30, 0, 0, 0]);
    append(&spool, 50..53).await;
    drained(&spool, &mut drainer).await;
    assert_eq!(account(&spool), [30, 3, 0, 33, 0, 0]);
    append(&spool, 53..54).await;
    // Whoever drains says that nothing was delivered: the account tells.
    let stretch = drainer.next(20, 1 << 20).await.unwrap();
    drainer.acknowledge(&stretch, 0).await.unwrap();
    let found = spool.account();
    assert_eq!((found.spooled, found.waiting, found.drained), (4, 0, 33));
}

#[tokio::test]
async fn a_note_is_there_at_the_next_start() {
    let bench = bench();
    let (spool, drainer) = bench.open();
    assert_eq!(spool.noted(), None);
    spool.note(b"topic 12").unwrap();
    drop((spool, drainer));
    assert_eq!(bench.open().0.noted(), Some(&b"topic 12"[..]));
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}
