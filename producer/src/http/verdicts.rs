//! Writes verdicts as JSON, by hand: the answer to a batch is as large as the batch, and the hot path builds no tree.

use std::fmt::Write;

use crate::intake::{Counts, Outcome, Verdict};

/// A verdict without its strings, in bytes.
const VERDICT_BYTES: usize = 80;

/// The answer to a batch: how many ended in each way, and a verdict for each event. With `failed_only` what was
/// accepted is left out, and each verdict says which event it is for.
pub fn write_batch(outcome: &Outcome, counts: Counts, failed_only: bool) -> String {
    let Counts {
        accepted,
        rejected,
        retry,
    } = counts;
    let verdicts = if failed_only {
        rejected + retry
    } else {
        accepted + rejected + retry
    };
    let mut out = String::with_capacity(64 + verdicts * (VERDICT_BYTES + 8));
    let _ = write!(
        out,
        "{{\"accepted\":{accepted},\"rejected\":{rejected},\"retry\":{retry},\"verdicts\":["
    );
    let mut first = true;
    for (index, verdict) in outcome.verdicts().enumerate() {
        if failed_only && matches!(verdict, Verdict::Accepted { .. }) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        write_verdict(&mut out, &verdict, failed_only.then_some(index));
    }
    out.push_str("]}");
    out
}

/// One verdict as an object.
pub fn write_verdict(out: &mut String, verdict: &Verdict<'_>, index: Option<usize>) {
    out.push('{');
    if let Some(index) = index {
        let _ = write!(out, "\"index\":{index},");
    }
    match *verdict {
        Verdict::Accepted { event_id } => {
            out.push_str("\"status\":\"accepted\",\"event_id\":");
            write_string(out, event_id);
        }
        Verdict::Rejected {
            event_id,
            code,
            field,
            message,
        } => {
            out.push_str("\"status\":\"rejected\"");
            if let Some(event_id) = event_id {
                out.push_str(",\"event_id\":");
                write_string(out, event_id);
            }
            write_reason(out, code.as_str(), field, message);
        }
        Verdict::Retry { event_id, reason } => {
            out.push_str("\"status\":\"retry\",\"event_id\":");
            write_string(out, event_id);
            write_reason(out, reason.code().as_str(), None, reason.message());
        }
    }
    out.push('}');
}

fn write_reason(out: &mut String, code: &str, field: Option<&str>, message: &str) {
    out.push_str(",\"code\":\"");
    out.push_str(code);
    out.push('"');
    if let Some(field) = field {
        out.push_str(",\"field\":");
        write_string(out, field);
    }
    out.push_str(",\"message\":");
    write_string(out, message);
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    if text
        .bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
    {
        out.push_str(text);
    } else {
        text.chars()
            .for_each(|character| write_escaped(out, character));
    }
    out.push('"');
}

fn write_escaped(out: &mut String, character: char) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        character if character < ' ' => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        character => out.push(character),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use streamgauge_proto::ErrorCode;

    use super::*;
    use crate::metrics::FailReason;

    fn written(verdict: Verdict<'_>, index: Option<usize>) -> Value {
        let mut out = String::new();
        write_verdict(&mut out, &verdict, index);
        serde_json::from_str(&out).unwrap()
    }

    #[test]
    fn every_verdict_is_an_object() {
        assert_eq!(
            written(Verdict::Accepted { event_id: "e1" }, None),
            json!({"status": "accepted", "event_id": "e1"})
        );
        let code = ErrorCode::MissingField;
        let rejected = Verdict::Rejected {
            event_id: None,
            code,
            field: Some("user_id"),
            message: "it is \"gone\"",
        };
        assert_eq!(
            written(rejected, Some(7)),
            json!({
                "index": 7, "status": "rejected", "code": "missing_field", "field": "user_id",
                "message": "it is \"gone\"",
            })
        );
        let retry = written(
            Verdict::Retry {
                event_id: "e1",
                reason: FailReason::TimedOut,
            },
            None,
        );
        assert_eq!(
            (&retry["status"], &retry["code"]),
            (&json!("retry"), &json!("log_unavailable"))
        );
        assert_eq!(retry["event_id"], "e1");
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_json(text in any::<String>()) {
            let verdict = Verdict::Accepted { event_id: &text };
            prop_assert_eq!(&written(verdict, None)["event_id"], &json!(text));
        }
    }
}
