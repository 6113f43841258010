//! What the watch knows: of each address the last answer and the one before it, since a rate is a
//! difference; and the rates of the last minute. Pure: it is handed the answers and the time.

use std::{collections::VecDeque, time::Duration};

use super::{
    answers::{Alert, Ledger},
    openmetrics::Scrape,
};
use crate::health::ServiceReport;

/// How many rates are kept for the little curves.
pub const HISTORY_MAX: usize = 60;

/// A service, in the order in which events pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The write side.
    Producer,
    /// The stream processor.
    Consumer,
    /// The read side.
    Analytics,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Producer, Self::Consumer, Self::Analytics];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
            Self::Analytics => "analytics",
        }
    }
}

/// What one service answered; each error is the reason in one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Visit {
    /// When, on a clock that only goes forward.
    pub at: Duration,
    /// `/health`.
    pub health: Result<ServiceReport, String>,
    /// `/metrics`.
    pub scrape: Result<Scrape, String>,
    /// `/v1/ledger`, which only analytics has.
    pub ledger: Option<Result<Ledger, String>>,
}

/// A service and what it answered.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Which one.
    pub service: Service,
    /// Where.
    pub address: String,
    /// Its last answer; `None` before the first.
    pub last: Option<Visit>,
    /// The one before.
    pub before: Option<Visit>,
}

impl Watched {
    /// A service that was not asked yet.
    pub const fn new(service: Service, address: String) -> Self {
        Self {
            service,
            address,
            last: None,
            before: None,
        }
    }

    /// Takes an answer.
    pub fn take(&mut self, visit: Visit) {
        self.before = self.last.replace(visit);
    }

    /// Its last metrics.
    pub fn scrape(&self) -> Option<&Scrape> {
        self.last.as_ref()?.scrape.as_ref().ok()
    }

    /// The metrics before, and the seconds in between; `None` when there are none or the service
    /// started anew.
    pub fn earlier(&self) -> Option<(&Scrape, f64)> {
        let (last, before) = (self.last.as_ref()?, self.before.as_ref()?);
        let (now, then) = (last.scrape.as_ref().ok()?, before.scrape.as_ref().ok()?);
        let seconds = last.at.checked_sub(before.at)?.as_secs_f64();
        let started = |scrape: &Scrape| scrape.sum("process_start_time_seconds");
        (seconds > 0.0 && started(now) == started(then)).then_some((then, seconds))
    }

    /// How fast a count grew; `None` when it cannot be told.
    pub fn per_second(&self, count: impl Fn(&Scrape) -> Option<f64>) -> Option<f64> {
        let now = count(self.scrape()?)?;
        let (then, seconds) = self.earlier()?;
        let grew = now - count(then)?;
        (grew >= 0.0).then_some(grew / seconds)
    }
}

/// Who tells what fires, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Teller {
    /// Analytics, which passes on what the Alertmanager of its settings tells.
    Analytics(String),
    /// An Alertmanager that the user named.
    Alertmanager(String),
}

impl Teller {
    /// Where it is.
    pub fn address(&self) -> &str {
        match self {
            Self::Analytics(address) | Self::Alertmanager(address) => address,
        }
    }
}

/// What it answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Alerts {
    /// It was not asked yet.
    NotAsked,
    /// Analytics knows no Alertmanager.
    NotConfigured,
    /// Why it did not answer.
    Silent(String),
    /// What fires.
    Known(Vec<Alert>),
}

/// The services and the alerts.
#[derive(Clone, Debug)]
pub struct Visits {
    /// The services.
    pub services: [Watched; 3],
    /// Who tells the alerts.
    pub teller: Teller,
    /// The alerts.
    pub alerts: Alerts,
}

impl Visits {
    /// Nobody was asked yet. Analytics tells the alerts where no Alertmanager is named.
    pub fn new(addresses: [String; 3], alertmanager: Option<String>) -> Self {
        let [producer, consumer, analytics] = addresses;
        let teller = alertmanager.map(Teller::Alertmanager);
        Self {
            teller: teller.unwrap_or_else(|| Teller::Analytics(analytics.clone())),
            services: [
                Watched::new(Service::Producer, producer),
                Watched::new(Service::Consumer, consumer),
                Watched::new(Service::Analytics, analytics),
            ],
            alerts: Alerts::NotAsked,
        }
    }

    /// One of them.
    pub const fn of(&self, service: Service) -> &Watched {
        &self.services[service as usize]
    }

    /// Takes a service's answer.
    pub fn take(&mut self, service: Service, visit: Visit) {
        self.services[service as usize].take(visit);
    }
}

/// The rates of the last minute, per row of the flow.
#[derive(Clone, Debug, Default)]
pub struct History {
    rows: Vec<VecDeque<f64>>,
}

impl History {
    /// Adds what each row is now.
    pub fn push(&mut self, rates: impl Iterator<Item = Option<f64>>) {
        for (index, rate) in rates.enumerate() {
            if self.rows.len() <= index {
                self.rows.push(VecDeque::new());
            }
            let row = &mut self.rows[index];
            row.push_back(rate.unwrap_or(0.0));
            if row.len() > HISTORY_MAX {
                row.pop_front();
            }
        }
    }

    /// The rates of a row, oldest first.
    pub fn row(&self, index: usize) -> impl DoubleEndedIterator<Item = f64> {
        self.rows.get(index).into_iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(at_s: u64, started: u64, count: u64) -> Visit {
        let text =
            format!("process_start_time_seconds {started}\nevents_received_total {count}\n# EOF\n");
        Visit {
            at: Duration::from_secs(at_s),
            health: Err(String::from("not asked")),
            scrape: Scrape::parse(text.as_bytes()).map_err(|error| error.to_string()),
            ledger: None,
        }
    }

    fn rate(visits: &[Visit]) -> Option<f64> {
        let mut watched = Watched::new(Service::Producer, String::from("h:1"));
        for visit in visits {
            watched.take(visit.clone());
        }
        watched.per_second(|scrape| scrape.sum("events_received_total"))
    }

    #[test]
    fn a_rate_is_a_difference_over_time() {
        let silent = Visit {
            scrape: Err(String::from("away")),
            ..visit(2, 1, 0)
        };
        let cases: [(&[Visit], Option<f64>); 6] = [
            (&[], None),
            (&[visit(1, 1, 10)], None),
            (&[visit(1, 1, 10), visit(3, 1, 40)], Some(15.0)),
            (&[visit(1, 1, 10), visit(1, 1, 40)], None),
            (&[visit(1, 1, 10), visit(2, 2, 40)], None),
            (&[visit(1, 1, 10), silent, visit(3, 1, 40)], None),
        ];
        for (visits, expected) in cases {
            assert_eq!(rate(visits), expected, "{visits:?}");
        }
    }

    #[test]
    fn a_count_that_shrinks_has_no_rate() {
        assert_eq!(rate(&[visit(1, 1, 10), visit(2, 1, 5)]), None);
    }

    #[test]
    fn history_is_bounded() {
        let mut history = History::default();
        for rate in 0..=HISTORY_MAX {
            history.push([Some(rate as f64), None].into_iter());
        }
        let row: Vec<f64> = history.row(0).collect();
        assert_eq!((row.len(), row[0]), (HISTORY_MAX, 1.0));
        assert_eq!(history.row(1).sum::<f64>(), 0.0);
        assert_eq!(history.row(2).count(), 0);
    }
}
