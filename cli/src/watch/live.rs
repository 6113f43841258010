//! The view as it runs: asks at each tick, takes answers and keys as they come, draws. A service
//! that is slow to answer holds up nothing but its own figures.

use std::{pin::Pin, time::Duration};

use crossterm::event::{Event, EventStream};
use futures::{Future, StreamExt, stream::FuturesUnordered};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    app::{App, Next},
    fetch::Fetcher,
    model::Model,
    screen::Screen,
    visits::{Alerts, History, Service, Visit, Visits},
};
use crate::{
    error::{CliError, Exit},
    signals::Signals,
    times,
};

enum Answer {
    Service(Service, Box<Visit>),
    Alerts(Alerts),
}

type Asking = FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>;

/// Who is asked and has not answered yet, so that nobody is asked twice at a time.
#[derive(Default)]
struct Busy {
    services: [bool; 3],
    alerts: bool,
}

/// Shows it until the user or a signal ends it.
///
/// # Errors
/// When the terminal cannot be used.
pub async fn run(
    fetcher: Fetcher,
    mut visits: Visits,
    every: Duration,
    mut app: App,
) -> Result<Exit, CliError> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::enter()?;
    let mut keys = EventStream::new();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asking, mut busy) = (Asking::new(), Busy::default());
    let mut history = History::default();
    let mut model = Model::of(&visits, times::now_us());
    loop {
        screen.draw(|frame| app.draw(frame, &model, &history))?;
        tokio::select! {
            () = signals.next() => break,
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if app.key(key) == Next::Quit => break,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => break,
            },
            _ = ticks.tick() => if !app.is_paused() {
                if model.flow.iter().any(|row| row.per_second.is_some()) {
                    history.push(model.flow.iter().map(|row| row.per_second));
                }
                ask(&fetcher, &visits, &mut busy, &asking);
            },
            Some(answer) = asking.next(), if !asking.is_empty() => {
                take(answer, &mut visits, &mut busy);
                // What was under way when the user paused is shown when they go on.
                if !app.is_paused() {
                    model = Model::of(&visits, times::now_us());
                }
            },
        }
    }
    Ok(Exit::Ok)
}

/// Asks everybody who has answered.
fn ask(fetcher: &Fetcher, visits: &Visits, busy: &mut Busy, asking: &Asking) {
    for watched in &visits.services {
        let service = watched.service;
        if std::mem::replace(&mut busy.services[service as usize], true) {
            continue;
        }
        let (fetcher, address) = (fetcher.clone(), watched.address.clone());
        asking.push(Box::pin(async move {
            let visit = fetcher.visit(service, &address).await;
            Answer::Service(service, Box::new(visit))
        }));
    }
    if !std::mem::replace(&mut busy.alerts, true) {
        let (fetcher, teller) = (fetcher.clone(), visits.teller.clone());
        asking.push(Box::pin(async move {
            Answer::Alerts(fetcher.alerts(&teller).await)
        }));
    }
}

fn take(answer: Answer, visits: &mut Visits, busy: &mut Busy) {
    match answer {
        Answer::Service(service, visit) => {
            busy.services[service as usize] = false;
            visits.take(service, *visit);
        }
        Answer::Alerts(alerts) => {
            busy.alerts = false;
            visits.alerts = alerts;
        }
    }
}
