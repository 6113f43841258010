//! Whatever happens to the files: what comes back is what was written, in order, and what does not come back is told.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;

use crate::faulty::Told;
use crate::segment::{self, Kind};
use crate::*;

const LIMITS: Limits = Limits {
    bytes_max: 1 << 30,
    segment_bytes: 300,
    group_bytes_max: 1,
    queue_appends_max: 8,
};

/// What is done to a file.
#[derive(Clone, Debug)]
enum Harm {
    Cut(Index),
    Flip(Index, u8),
    Zero(Index, usize),
    Insert(Index, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        any::<Index>().prop_map(Harm::Cut),
        (any::<Index>(), 1u8..).prop_map(|(at, bits)| Harm::Flip(at, bits)),
        (any::<Index>(), 1usize..200).prop_map(|(at, bytes)| Harm::Zero(at, bytes)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..60))
            .prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
    ]
}

impl Harm {
    /// Whether it changed anything.
    fn apply(&self, bytes: &mut Vec<u8>) -> bool {
        let before = bytes.clone();
        if bytes.is_empty() {
            return false;
        }
        let len = bytes.len();
        match self {
            Self::Cut(at) => bytes.truncate(at.index(len)),
            Self::Flip(at, bits) => bytes[at.index(len)] ^= bits,
            Self::Zero(at, count) => {
                let at = at.index(len);
                let end = (at + count).min(len);
                bytes[at..end].fill(0);
            }
            Self::Insert(at, more) => {
                let at = at.index(len);
                bytes.splice(at..at, more.iter().copied());
            }
        }
        *bytes != before
    }
}

fn opened(dir: &TempDir, told: &Told) -> (Spool, Drainer) {
    let mut salt = 0x9e37_79b9_7f4a_7c15_u64;
    let salts = Box::new(move || {
        salt = salt.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        salt
    });
    let deps = Deps {
        files: Arc::new(Disk),
        observer: Arc::new(told.clone()),
        salts,
    };
    open(dir.path(), LIMITS, Duration::ZERO, deps).unwrap()
}

fn segments(dir: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| matches!(segment::kind(path), Some(Kind::Segment(_))))
        .collect();
    files.sort();
    files
}

async fn write(dir: &TempDir, appends: &[Vec<Vec<u8>>]) {
    let (spool, _drainer) = opened(dir, &Told::default());
    let mut at_us = 0;
    for append in appends {
        let mut records = Records::default();
        for body in append {
            records.push(at_us, |out| out.extend_from_slice(body));
            at_us += 1;
        }
        spool.append(records).await.unwrap();
    }
}

/// Everything that comes back, by the place it was written in.
async fn read(dir: &TempDir, told: &Told) -> Vec<(usize, Vec<u8>)> {
    let (spool, mut drainer) = opened(dir, told);
    let mut found = Vec::new();
    while !spool.is_idle() {
        let stretch = drainer.next(5, 1 << 20).await.unwrap();
        for record in stretch.records() {
            found.push((record.at_us as usize, stretch.body(record).to_vec()));
        }
        drainer
            .acknowledge(&stretch, stretch.records().len() as u64)
            .await
            .unwrap();
    }
    found
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(work)
}

fn appends() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let body = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        // Bytes that look like what stands before a record.
        1 => Just(b"SGs1SGs1\x00\x00\x00\x00SGs1".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 200..900),
    ];
    prop::collection::vec(prop::collection::vec(body, 1..4), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_was_confirmed_comes_back(appends in appends()) {
        let dir = TempDir::new().unwrap();
        let (told, found) = (Told::default(), run(async {
            write(&dir, &appends).await;
            read(&dir, &Told::default()).await
        }));
        let expected: Vec<_> = appends.concat().into_iter().enumerate().collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(told.errors(), []);
    }

    #[test]
    fn damage_never_yields_wrong_bytes_and_is_told(
        appends in appends(), which in any::<Index>(), harms in prop::collection::vec(harm(), 1..4),
    ) {
        let dir = TempDir::new().unwrap();
        run(write(&dir, &appends));
        let files = segments(&dir);
        let path = &files[which.index(files.len())];
        let mut bytes = fs::read(path).unwrap();
        let whole = bytes.clone();
        let harmed = harms.iter().filter(|harm| harm.apply(&mut bytes)).count() > 0;
        fs::write(path, &bytes).unwrap();

        let told = Told::default();
        let found = run(read(&dir, &told));
        let written = appends.concat();
        for pair in found.windows(2) {
            prop_assert!(pair[0].0 < pair[1].0, "in order, each once");
        }
        for (place, body) in &found {
            prop_assert_eq!(body, &written[*place], "byte for byte");
        }
        let missing = (written.len() - found.len()) as u64;
        let is_last = path == files.last().unwrap();
        if !is_last {
            prop_assert_eq!(told.lost(), missing, "each lost record is counted");
        }
        // A file that ends between two records, with nothing behind it, does not tell that it was longer.
        let cut_clean = is_last && whole.starts_with(&bytes) && ends_between_records(&bytes, &whole, path);
        if missing > 0 && !cut_clean {
            prop_assert!(!told.errors().is_empty(), "{} of {} are missing", missing, written.len());
        }
        prop_assert!(harmed || missing == 0);
    }

    #[test]
    fn no_record_can_pose_as_a_frame(
        body in prop::collection::vec(any::<u8>(), 0..60), salt: u64, guess: u64, seq: u64,
    ) {
        prop_assume!(salt != guess);
        let mut posing = Vec::new();
        frame::write(&mut posing, guess, seq, 0, &body);
        prop_assert_eq!(frame::find(&posing, salt), None);
        prop_assert_eq!(frame::find(&posing, guess), Some(0));
    }

    #[test]
    fn a_position_is_read_as_written_or_not_at_all(seq: u64, at in any::<Index>(), bits in 1u8..) {
        let mut bytes = position::encode(seq);
        prop_assert_eq!(position::decode(&bytes), Some(seq));
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        prop_assert_eq!(position::decode(&bytes), None);
        prop_assert_eq!(position::decode(&bytes[..at]), None);
    }
}

fn ends_between_records(bytes: &[u8], whole: &[u8], path: &std::path::Path) -> bool {
    let Some(Kind::Segment(name)) = segment::kind(path) else {
        return false;
    };
    let mut at = 0;
    while at < bytes.len() {
        let head = frame::head(&whole[at..], name.salt).unwrap();
        at += head.frame_bytes();
    }
    at == bytes.len()
}
