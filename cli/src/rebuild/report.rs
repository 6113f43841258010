//! What a rebuild tells.

use std::{io, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use streamgauge_analytics::rebuild::{Comparison, Difference, Figures, Totals, Where};
use streamgauge_chain::Outcomes;

use super::run::Rebuilt;
use crate::{
    error::Exit,
    output::{Output, Paint},
    table::{Align, Table, whole},
    times,
};

/// What was done with the rebuilt rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// They are served now.
    Swapped,
    /// They were only to be compared.
    DryRun,
    /// They count less than what is served, and nobody has accepted that.
    Refused,
}

/// The end of a rebuild.
pub struct Report {
    /// Per partition.
    pub partitions: Vec<Rebuilt>,
    /// How the rows compare.
    pub comparison: Comparison,
    /// What became of them.
    pub ending: Ending,
    /// Events that were recomputed.
    pub events: u64,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        let differs = self.comparison.total().differing > 0;
        match self.ending {
            Ending::Swapped => Exit::Ok,
            Ending::DryRun if !differs => Exit::Ok,
            Ending::DryRun | Ending::Refused => Exit::No,
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print(&self, output: &mut Output) -> io::Result<()> {
        if output.json() {
            return output.document(&self.document());
        }
        self.print_sources(output)?;
        self.print_totals(output)?;
        self.print_differences(output)?;
        self.print_ending(output)
    }

    fn print_sources(&self, output: &mut Output) -> io::Result<()> {
        let took = times::show_duration(self.took);
        output.line(format!("{} offsets in {took}", whole(self.events)))?;
        for part in &self.partitions {
            if part.from_deltas > 0 {
                output.line(format!(
                    "partition {}: the source begins at {}; offsets below {} are taken from delta batches",
                    part.partition, part.source_low, part.from_deltas
                ))?;
            }
            if part.ledger != part.rebuilt {
                let terms = part.ledger.terms().into_iter().zip(part.rebuilt.terms());
                let changed: Vec<String> = terms
                    .filter(|(one, other)| one.1 != other.1)
                    .map(|((name, served), (_, rebuilt))| format!("{name} {served} -> {rebuilt}"))
                    .collect();
                output.line(format!(
                    "partition {}: judged differently than by its owners then: {}",
                    part.partition,
                    changed.join(", ")
                ))?;
            }
        }
        Ok(())
    }

    fn print_totals(&self, output: &mut Output) -> io::Result<()> {
        let names = ["rows", "differ", "less", "served", "rebuilt"];
        let numbers = names.map(|name| (name, Align::Right));
        let columns = [("series", Align::Left), ("bucket", Align::Right)];
        let mut table = Table::new(columns.into_iter().chain(numbers));
        let cells = |totals: &Totals| {
            [
                totals.rows,
                totals.differing,
                totals.less,
                totals.served,
                totals.rebuilt,
            ]
            .map(whole)
        };
        for ((series, tier_s), totals) in &self.comparison.series {
            let lead = [series.clone(), format!("{tier_s} s")];
            table.row(lead.into_iter().chain(cells(totals)));
        }
        let lead = [String::from("user pages"), String::new()];
        table.row(lead.into_iter().chain(cells(&self.comparison.users)));
        for line in table.lines() {
            output.line(line)?;
        }
        Ok(())
    }

    fn print_differences(&self, output: &mut Output) -> io::Result<()> {
        let total = self.comparison.total().differing;
        if total == 0 {
            return Ok(());
        }
        let listed = self.comparison.listed.len() as u64;
        output.line(format!(
            "\n{} rows differ; {}:",
            whole(total),
            if listed < total { "the first" } else { "these" }
        ))?;
        for difference in &self.comparison.listed {
            output.line(format!("  {}", line_of(difference)))?;
        }
        Ok(())
    }

    fn print_ending(&self, output: &mut Output) -> io::Result<()> {
        let total = self.comparison.total();
        let verdict = if total.differing == 0 {
            output.paint(Paint::Green, "equal")
        } else {
            output.paint(Paint::Yellow, "different")
        };
        let text = match self.ending {
            Ending::Swapped => {
                "swapped; the rows from before are kept until the next rebuild or --prune"
            }
            Ending::DryRun => "nothing was changed",
            Ending::Refused => {
                "not swapped: rebuilt figures are less than what is served; look at them, then --accept"
            }
        };
        output.line(format!("{verdict}: {text}"))
    }

    fn document(&self) -> Value {
        let total = self.comparison.total();
        let partitions: Vec<Value> = self.partitions.iter().map(partition).collect();
        let series: Vec<Value> = self
            .comparison
            .series
            .iter()
            .map(|((series, tier_s), totals)| {
                json!({"series": series, "bucket_s": tier_s, "totals": totals_of(totals)})
            })
            .collect();
        let listed: Vec<Value> = self.comparison.listed.iter().map(difference).collect();
        json!({
            "equal": total.differing == 0,
            "ending": self.ending,
            "offsets": self.events,
            "seconds": self.took.as_secs_f64(),
            "total": totals_of(&total),
            "series": series,
            "user_pages": totals_of(&self.comparison.users),
            "differences": listed,
            "partitions": partitions,
        })
    }
}

fn totals_of(totals: &Totals) -> Value {
    let Totals {
        rows,
        differing,
        less,
        served,
        rebuilt,
    } = totals;
    json!({"rows": rows, "differing": differing, "less": less, "served": served, "rebuilt": rebuilt})
}

fn partition(part: &Rebuilt) -> Value {
    json!({
        "partition": part.partition,
        "source_low": part.source_low,
        "from_deltas_below": part.from_deltas,
        "head": part.head,
        "ledger": outcomes(&part.ledger),
        "rebuilt": outcomes(&part.rebuilt),
    })
}

fn outcomes(outcomes: &Outcomes) -> Value {
    let terms = outcomes.terms();
    terms
        .into_iter()
        .map(|(name, count)| (String::from(name), json!(count)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn figures(figures: Option<&Figures>) -> Value {
    figures.map_or(Value::Null, |figures| {
        json!({
            "count": figures.count, "value_count": figures.value_count, "sum": figures.sum, "min": figures.min,
            "max": figures.max, "users": figures.users, "last_us": figures.last_us,
            "unreadable_sketches": figures.unreadable,
        })
    })
}

fn difference(found: &Difference) -> Value {
    let at = match &found.at {
        Where::Bucket {
            tier_s,
            bucket_s,
            series,
            key,
        } => json!({
            "series": series, "bucket_s": tier_s, "start_s": bucket_s,
            "key": serde_json::from_str::<Value>(key).unwrap_or_else(|_| Value::from(key.as_str())),
        }),
        Where::User {
            user_id,
            page_url,
            event_type,
        } => json!({"user_id": user_id, "page_url": page_url, "event_type": event_type}),
    };
    let (served, rebuilt) = (
        figures(found.served.as_ref()),
        figures(found.rebuilt.as_ref()),
    );
    json!({"at": at, "served": served, "rebuilt": rebuilt})
}

fn line_of(found: &Difference) -> String {
    let at = match &found.at {
        Where::Bucket {
            tier_s,
            bucket_s,
            series,
            key,
        } => {
            let start = times::show(bucket_s.saturating_mul(1_000_000));
            format!("{series} {key} {start} ({tier_s} s)")
        }
        Where::User {
            user_id,
            page_url,
            event_type,
        } => format!("user {user_id} {page_url} {event_type}"),
    };
    format!("{at}: {}", changes(found.served, found.rebuilt))
}

fn changes(served: Option<Figures>, rebuilt: Option<Figures>) -> String {
    let (Some(served), Some(rebuilt)) = (served, rebuilt) else {
        return match (served, rebuilt) {
            (Some(served), _) => format!("count {} -> no row", served.count),
            (_, Some(rebuilt)) => format!("no row -> count {}", rebuilt.count),
            (None, None) => String::from("no row"),
        };
    };
    let mut parts = Vec::new();
    let whole = [
        ("count", served.count, rebuilt.count),
        ("values", served.value_count, rebuilt.value_count),
        ("unreadable sketches", served.unreadable, rebuilt.unreadable),
    ];
    for (name, one, other) in whole {
        if one != other {
            parts.push(format!("{name} {one} -> {other}"));
        }
    }
    let broken = [
        ("sum", served.sum, rebuilt.sum),
        ("min", served.min, rebuilt.min),
        ("max", served.max, rebuilt.max),
        ("users", served.users, rebuilt.users),
    ];
    for (name, one, other) in broken {
        if (one - other).abs() > 0.0 {
            parts.push(format!("{name} {one:.6} -> {other:.6}"));
        }
    }
    if served.last_us != rebuilt.last_us {
        let (one, other) = (served.last_us, rebuilt.last_us);
        let (one, other) = (times::show(one), times::show(other));
        parts.push(format!("last {one} -> {other}"));
    }
    parts.join(", ")
}
