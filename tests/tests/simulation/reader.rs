//! One instance of analytics: the real code that judges, writes, folds and makes checkpoints, driven by hand, one poll
//! of a future at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use streamgauge_analytics::{
    Config,
    apply::{self, ApplyError, Polled, Prepared},
    checkpoint::{self, Checkpointed},
    load,
    metrics::AnalyticsMetrics,
    store::{Store, StoreError},
    view::{Fold, Overlay, Seconds},
};
use streamgauge_telemetry::Metrics;

use crate::{random::Random, source, store::ModelStore};

/// The clock of every instance: close enough to what is simulated that all of it is recent, even for one that had to
/// keep less because others moved the checkpoint while it loaded.
const NOW_S: i64 = source::START_MS / 1_000 + 20;

/// What all instances of all worlds share.
struct Shared {
    config: Config,
    metrics: AnalyticsMetrics,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let config = Config::default();
        let metrics = AnalyticsMetrics::register(&Metrics::new("analytics"));
        Shared { config, metrics }
    })
}

type Loading = BoxFuture<'static, Result<Fold, StoreError>>;
type Writing = BoxFuture<'static, (Prepared, Result<(), ApplyError>)>;
type CatchingUp = BoxFuture<'static, (Fold, Result<bool, StoreError>)>;

/// What an instance is at.
enum State {
    Loading(Loading),
    Following(Box<Following>),
    CatchingUp(CatchingUp),
}

struct Following {
    fold: Fold,
    writing: Option<Writing>,
    /// What was judged and is not written; whether the log's end was seen behind it.
    waiting: Option<Prepared>,
    at_end: bool,
    checkpoint: Option<BoxFuture<'static, Checkpointed>>,
}

impl Following {
    fn new(fold: Fold) -> Self {
        Self {
            fold,
            writing: None,
            waiting: None,
            at_end: false,
            checkpoint: None,
        }
    }
}

/// `metrics-data` as it is now.
#[derive(Clone, Copy)]
pub struct Log<'a> {
    pub low: i64,
    pub records: &'a [Bytes],
}

/// An instance.
pub struct Reader {
    pub id: u64,
    store: Arc<ModelStore>,
    state: State,
    checkpoints: i64,
    /// Retention took what it had not read, and another instance had.
    pub outrun: u64,
    /// Another instance's checkpoint came first.
    pub overtaken: u64,
}

fn poll<T>(future: &mut BoxFuture<'static, T>) -> Option<T> {
    let mut context = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut context) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

impl Reader {
    pub fn new(id: u64, store: Arc<ModelStore>) -> Self {
        let state = State::Loading(load(&store));
        Self {
            id,
            store,
            state,
            checkpoints: 0,
            outrun: 0,
            overtaken: 0,
        }
    }

    fn dyn_store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn reload(&mut self) {
        self.state = State::Loading(load(&self.store));
    }

    /// Does one thing; says what.
    pub fn step(&mut self, random: &mut Random, log: Log<'_>) -> &'static str {
        match &mut self.state {
            State::Loading(loading) => match poll(loading) {
                None => "loads",
                Some(Ok(fold)) => {
                    self.state = State::Following(Box::new(Following::new(fold)));
                    "has loaded"
                }
                Some(Err(_)) => {
                    self.reload();
                    "fails to load"
                }
            },
            State::CatchingUp(catching_up) => match poll(catching_up) {
                None => "catches up",
                Some((fold, Ok(_))) => {
                    self.state = State::Following(Box::new(Following::new(fold)));
                    "has caught up with a checkpoint"
                }
                Some((_, Err(_))) => {
                    self.reload();
                    "fails to catch up"
                }
            },
            State::Following(_) => self.follow(random, log),
        }
    }

    fn follow(&mut self, random: &mut Random, log: Log<'_>) -> &'static str {
        let State::Following(following) = &mut self.state else {
            return "is not following";
        };
        if following.writing.is_some() {
            // A checkpoint goes on beside a write, but is not finished in its midst.
            return self.write();
        }
        match random.below(10) {
            0 => self.begin_checkpoint(random),
            1..=4 if following.checkpoint.is_some() => self.poll_checkpoint(),
            _ => self.read(random, log),
        }
    }

    fn read(&mut self, random: &mut Random, log: Log<'_>) -> &'static str {
        let store = self.dyn_store();
        let State::Following(following) = &mut self.state else {
            return "is not following";
        };
        let prepared = match following.waiting.take() {
            Some(prepared) => prepared,
            None => {
                let end = log.records.len() as i64;
                let position = following.fold.row(0).delta_position;
                let stored = self.store.lock().chain;
                if position < log.low && stored.is_some_and(|row| row.delta_position > position) {
                    self.outrun += 1;
                    self.reload();
                    return "was outrun by retention and takes over what the store has";
                }
                let from = position.max(log.low);
                let to = end.min(from + 1 + random.below(4).cast_signed());
                following.at_end = to == end;
                let mut polled = Polled::default();
                for offset in from..to {
                    polled.push_record(0, offset, log.records[offset as usize].clone());
                }
                apply::prepare(
                    &following.fold,
                    polled,
                    NOW_S * 1_000_000,
                    &shared().metrics,
                )
            }
        };
        if prepared.is_empty() {
            if following.at_end {
                following.fold.close_gap(0);
            }
            return "finds nothing new";
        }
        following.writing = Some(Box::pin(async move {
            let mut prepared = prepared;
            let written = prepared.write(&store).await;
            (prepared, written)
        }));
        "has read and writes"
    }

    fn write(&mut self) -> &'static str {
        let State::Following(following) = &mut self.state else {
            return "is not following";
        };
        let Some(done) = following.writing.as_mut().and_then(poll) else {
            return "writes";
        };
        following.writing = None;
        match done {
            (prepared, Ok(())) => {
                prepared.apply(&mut following.fold, &shared().metrics);
                if following.at_end {
                    following.fold.close_gap(0);
                }
                "has written"
            }
            (prepared, Err(ApplyError::Store(_))) => {
                following.waiting = Some(prepared);
                "fails to write"
            }
            (_, Err(ApplyError::Diverged { .. })) => {
                self.reload();
                "finds the store elsewhere"
            }
        }
    }

    fn begin_checkpoint(&mut self, random: &mut Random) -> &'static str {
        let store = self.dyn_store();
        let State::Following(following) = &mut self.state else {
            return "is not following";
        };
        if following.checkpoint.is_some() {
            return "has a checkpoint under way";
        }
        self.checkpoints += 1;
        let name = (self.checkpoints << 32) | (random.below(1 << 20) << 8 | self.id).cast_signed();
        let Some(frozen) = following.fold.freeze(name) else {
            return "has nothing for a checkpoint";
        };
        let rows = checkpoint::rows(&frozen, &following.fold.view().names, &[0; 4]);
        following.checkpoint = Some(Box::pin(checkpoint::write(store, rows)));
        "begins a checkpoint"
    }

    fn poll_checkpoint(&mut self) -> &'static str {
        let store = self.dyn_store();
        let State::Following(following) = &mut self.state else {
            return "is not following";
        };
        let Some(done) = following.checkpoint.as_mut().and_then(poll) else {
            return "writes a checkpoint";
        };
        following.checkpoint = None;
        match done {
            Checkpointed::Done => {
                following.fold.thaw();
                "has written a checkpoint"
            }
            Checkpointed::Failed(_) => "fails to write a checkpoint",
            Checkpointed::Overtaken => {
                self.overtaken += 1;
                self.catch_up(store);
                "was overtaken by another's checkpoint"
            }
        }
    }

    /// Takes up a checkpoint of another instance. What was judged and not written is read again.
    fn catch_up(&mut self, store: Arc<dyn Store>) {
        let loading = State::Loading(load(&self.store));
        if let State::Following(following) = std::mem::replace(&mut self.state, loading) {
            let mut fold = following.fold;
            self.state = State::CatchingUp(Box::pin(async move {
                let caught_up = load::overlay(&store, &mut fold).await.map(|()| true);
                (fold, caught_up)
            }));
        }
    }

    /// Where it stands, beside where the store does.
    pub fn place(&self) -> String {
        let contained = self.store.lock();
        let store = contained.chain.map_or(0, |row| row.delta_position);
        let State::Following(following) = &self.state else {
            return format!("the store is at {store}, {contained}");
        };
        let view = following.fold.view();
        format!(
            "at {} with {} since checkpoint {:x} of {}, frozen {:x?}; the store is at {store}, {contained}",
            following.fold.row(0).delta_position,
            view.recent
                .all_cells()
                .map(|(_, _, cell)| cell.value.count)
                .sum::<u64>(),
            view.generation,
            following.fold.checkpointed(0),
            view.frozen.as_ref().map(|frozen| frozen.to),
        )
    }

    /// Has read all of the log, and knows the store's checkpoint.
    pub fn is_at_rest(&mut self, log: Log<'_>) -> bool {
        let generation = self.store.lock().generation;
        let State::Following(following) = &mut self.state else {
            return false;
        };
        let is_idle = following.writing.is_none()
            && following.waiting.is_none()
            && following.checkpoint.is_none();
        if !is_idle {
            return false;
        }
        if following.fold.view().overlays_at(generation).is_none() {
            let store = self.dyn_store();
            self.catch_up(store);
            return false;
        }
        // Retention may have taken the rest, but not what the store has.
        let position = following.fold.row(0).delta_position;
        let stored = self.store.lock().chain;
        position.max(log.low) == log.records.len() as i64
            && stored.is_none_or(|row| row.delta_position <= position)
    }

    /// Events by key, as memory alone has them, and as the store and the overlays of this instance add up to.
    pub fn counts(&self) -> Option<[BTreeMap<String, u64>; 2]> {
        let State::Following(following) = &self.state else {
            return None;
        };
        let view = following.fold.view();
        let mut memory = BTreeMap::new();
        add_cells(&mut memory, &view.recent);
        let contained = self.store.lock();
        let mut both = contained.counts(1);
        for overlay in view.overlays_at(contained.generation)? {
            add_cells(&mut both, &overlay.seconds);
        }
        Some([memory, both])
    }

    /// Events by page of the one user, from the store and the overlays.
    pub fn user_counts(&self) -> Option<BTreeMap<String, u64>> {
        let State::Following(following) = &self.state else {
            return None;
        };
        let contained = self.store.lock();
        let mut counts = contained.users.clone();
        let overlays = following.fold.view().overlays_at(contained.generation)?;
        for page in overlays.into_iter().flat_map(Overlay::all_users) {
            *counts.entry(page.key.page_url.to_string()).or_default() += page.count;
        }
        Some(counts)
    }
}

fn add_cells(counts: &mut BTreeMap<String, u64>, seconds: &Seconds) {
    for (_, _, cell) in seconds.all_cells() {
        *counts.entry(cell.key.to_text()).or_default() += cell.value.count;
    }
}

fn load(store: &Arc<ModelStore>) -> Loading {
    let store: Arc<dyn Store> = store.clone();
    Box::pin(async move { load::load(&store, &shared().config, NOW_S).await })
}
