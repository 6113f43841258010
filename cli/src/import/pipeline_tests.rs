//! The pipeline from a file to a producer that the test holds in its hands.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use tokio::sync::{Semaphore, mpsc};

use super::{
    identity::Identity,
    mapping::Mapping,
    pipeline::{BatchOptions, History, Observer, Tally, deliver, read_batches},
    progress::Progress,
    records::{Format, ReadOptions},
    source::Source,
};
use crate::{
    error::CliError,
    submit::{
        Deliverer, RetryPolicy,
        fake::{FakeProducer, accept, refusal, silence},
    },
};

const RECORDS: u64 = 100;
const BATCH: usize = 10;

/// Remembers up to where the journal was written.
#[derive(Default)]
struct Reserved(Arc<AtomicU64>);

impl Observer for Reserved {
    fn reserve(&mut self, progress: &Progress) -> Result<(), CliError> {
        self.0.store(progress.reserved, Ordering::SeqCst);
        Ok(())
    }

    fn settled(&mut self, _: u64) {}
}

/// Delivers the file, or what is left of it, over some connections.
async fn import(
    fake: &Arc<FakeProducer>,
    connections: usize,
    progress: &mut Progress,
    observer: &mut Reserved,
    signals: impl Stream<Item = ()>,
) -> Tally {
    let lines: String = (0..RECORDS)
        .map(|number| format!("{{\"user_id\":\"{number}\",\"event_type\":\"click\"}}\n"))
        .collect();
    let mut source = Source::spool(lines.as_bytes(), 1 << 20).expect("kept");
    let options = ReadOptions {
        format: Format::Ndjson,
        mapping: Mapping::default(),
        delimiter: b',',
        record_bytes_max: 1 << 10,
    };
    let identity = Identity::new(source.content_hash().expect("hash"), &options);
    let batching = BatchOptions {
        events_max: BATCH,
        bytes_max: 1 << 20,
        history: History::Nothing,
    };
    // One attempt: waits have tests of their own.
    let policy = RetryPolicy {
        retry_for: Duration::ZERO,
    };
    let deliverers = (0..connections)
        .map(|_| Deliverer::new(fake.submitter(), policy))
        .collect();
    let input = read_batches(source, options, batching, identity, progress.clone());
    deliver(input, deliverers, progress, BATCH, observer, signals)
        .await
        .expect("the input can be read")
}

fn distinct(fake: &FakeProducer) -> (usize, usize) {
    let ids: Vec<String> = fake.requests().into_iter().flatten().collect();
    (ids.len(), ids.iter().collect::<BTreeSet<_>>().len())
}

/// Yields a signal once there were so many requests.
fn signals_at(fake: &Arc<FakeProducer>, requests: usize) -> impl Stream<Item = ()> + use<> {
    let fake = fake.clone();
    stream::once(async move {
        while fake.requests().len() < requests {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

#[tokio::test]
async fn the_journal_is_written_before_events_go_out() {
    let mut observer = Reserved::default();
    let reserved = observer.0.clone();
    let fake = FakeProducer::new(move |_, events| {
        let bound = reserved.load(Ordering::SeqCst);
        let ordinal = |user: &str| user.parse::<u64>().expect("a number");
        assert!(events.iter().all(|event| ordinal(&event.user_id) < bound));
        accept(events)
    });
    let mut progress = Progress::default();
    let tally = import(&fake, 3, &mut progress, &mut observer, stream::pending()).await;
    assert!(tally.complete, "{tally:?}");
    assert_eq!((tally.accepted, progress.accepted), (RECORDS, RECORDS));
    assert_eq!((progress.done, progress.uncertain()), (RECORDS, 0));
    assert_eq!(distinct(&fake), (100, 100));
}

#[tokio::test]
async fn an_import_that_is_stopped_goes_on_where_it_was() {
    let fake = FakeProducer::new(|_, events| accept(events));
    fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut progress = Progress::default();
    let mut observer = Reserved::default();
    // Answers begin once the signal was taken: only then is the stream asked for the next one.
    let opener = fake.clone();
    let answers = stream::once(async move {
        opener.gate.add_permits(1_000);
        std::future::pending().await
    });
    let signals = signals_at(&fake, 2).chain(answers);
    let tally = import(&fake, 2, &mut progress, &mut observer, signals).await;
    assert!(!tally.complete && !tally.aborted, "{tally:?}");
    assert_eq!(
        tally.accepted, progress.done,
        "what was under way was waited for"
    );
    assert_eq!((progress.done, progress.uncertain()), (20, 0));
    let tally = import(&fake, 2, &mut progress, &mut observer, stream::pending()).await;
    assert!(tally.complete);
    assert_eq!((tally.accepted, progress.accepted), (RECORDS - 20, RECORDS));
    assert_eq!(
        distinct(&fake),
        (100, 100),
        "nothing twice, nothing left out"
    );
}

#[tokio::test]
async fn a_second_signal_does_not_wait_and_forgets_nothing() {
    let fake = FakeProducer::new(|_, events| accept(events));
    fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut progress = Progress::default();
    let mut observer = Reserved::default();
    let signals = signals_at(&fake, 2).chain(stream::iter([()]));
    let tally = import(&fake, 2, &mut progress, &mut observer, signals).await;
    assert!(tally.aborted && !tally.complete);
    assert!(
        progress.uncertain() >= 20,
        "two batches may be in the log: {progress:?}"
    );
    fake.gate.add_permits(1_000);
    let tally = import(&fake, 2, &mut progress, &mut observer, stream::pending()).await;
    assert!(tally.complete);
    assert_eq!(distinct(&fake), (120, 100), "again with the same ids");
}

#[tokio::test]
async fn a_refusal_stops_and_settles_nothing() {
    let fake = FakeProducer::new(|request, events| match request {
        0 => accept(events),
        _ => refusal(),
    });
    let mut progress = Progress::default();
    let mut observer = Reserved::default();
    let tally = import(&fake, 1, &mut progress, &mut observer, stream::pending()).await;
    assert!(!tally.complete);
    assert_eq!((tally.accepted, tally.rejected, tally.refused), (10, 0, 10));
    assert!(tally.refusal.expect("a reason").contains("no such token"));
    assert_eq!((progress.done, progress.uncertain()), (10, 0));
    assert_eq!(
        fake.requests().len(),
        2,
        "the next would be refused as well"
    );
}

#[tokio::test]
async fn events_without_an_answer_stay_uncertain() {
    let fake = FakeProducer::new(|request, events| match request {
        0 => accept(events),
        _ => silence(),
    });
    let mut progress = Progress::default();
    let mut observer = Reserved::default();
    let tally = import(&fake, 1, &mut progress, &mut observer, stream::pending()).await;
    assert_eq!((tally.accepted, tally.failed), (10, 10));
    assert_eq!(
        (progress.done, progress.reserved, progress.uncertain()),
        (10, 20, 10)
    );
}

#[tokio::test]
async fn a_reader_that_dies_is_no_end_of_the_input() {
    let fake = FakeProducer::new(|_, events| accept(events));
    let policy = RetryPolicy {
        retry_for: Duration::ZERO,
    };
    let deliverers = vec![Deliverer::new(fake.submitter(), policy)];
    let (sender, input) = mpsc::channel(1);
    drop(sender);
    let mut progress = Progress::default();
    let mut observer = Reserved::default();
    let signals = stream::pending();
    let ended = deliver(
        input,
        deliverers,
        &mut progress,
        BATCH,
        &mut observer,
        signals,
    )
    .await;
    let error = ended.expect_err("not the end");
    assert!(
        crate::error::describe(&error).contains("ended early"),
        "{error}"
    );
}
