//! Access logs in the Apache combined format (nginx's default too), and the common format, which
//! lacks the last two fields.
//!
//! `host ident user [time] "request" status bytes "referer" "user agent"`. A line that cannot be
//! read is an error with its reason, never skipped in silence. Pure: bytes in, an event out.

use jiff::Timestamp;
use serde::Serialize;
use streamgauge_proto::v1::SubmittedEvent;

/// The event type of every line.
pub const EVENT_TYPE: &str = "request";

#[derive(Serialize)]
struct Properties<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    referer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    protocol: &'a str,
}

/// Reads one line, without its line end.
///
/// # Errors
/// A sentence that says which field cannot be read.
pub fn parse(line: &[u8]) -> Result<SubmittedEvent, String> {
    let line = String::from_utf8_lossy(line);
    let line = line.trim();
    let (host, rest) = line.split_once(' ').ok_or("there is no client address")?;
    let (_, rest) = rest.split_once('[').ok_or("there is no `[time]`")?;
    let (time, rest) = rest.split_once(']').ok_or("the `[time]` does not end")?;
    let occurred_at_us = read_time(time)?;
    let (request, rest) = quoted(rest).ok_or("there is no \"request\"")?;
    let mut words = rest.trim_start().splitn(3, ' ');
    let status = read_status(words.next().unwrap_or_default())?;
    let value = read_bytes(words.next().unwrap_or_default())?;
    let rest = words.next().unwrap_or_default();
    // The real world cuts user agents off: a last field that does not end is taken as it is.
    let (referer, rest) = quoted(rest).unwrap_or(("", ""));
    let (user_agent, _) = quoted(rest).unwrap_or(("", ""));
    let (method, path, protocol) = split_request(request);
    let properties = Properties {
        method,
        status,
        referer: &unescape(dash_is_nothing(referer)),
        user_agent: &unescape(dash_is_nothing(user_agent)),
        protocol,
    };
    Ok(SubmittedEvent {
        user_id: host.to_owned(),
        event_type: EVENT_TYPE.to_owned(),
        occurred_at_us: Some(occurred_at_us),
        page_url: path.to_owned(),
        value,
        properties: serde_json::to_vec(&properties)
            .map_err(|error| error.to_string())?
            .into(),
        ..SubmittedEvent::default()
    })
}

fn read_time(text: &str) -> Result<i64, String> {
    Timestamp::strptime("%d/%b/%Y:%H:%M:%S %z", text)
        .map(Timestamp::as_microsecond)
        .map_err(|_| format!("`{text}` is no time like 17/May/2015:10:05:03 +0000"))
}

fn read_status(text: &str) -> Result<u16, String> {
    let status = (text.len() == 3).then(|| text.parse().ok()).flatten();
    status.ok_or_else(|| format!("`{text}` is no HTTP status"))
}

fn read_bytes(text: &str) -> Result<Option<f64>, String> {
    if text == "-" {
        return Ok(None);
    }
    let bytes: u64 = text
        .parse()
        .map_err(|_| format!("`{text}` is no number of bytes"))?;
    Ok(Some(bytes as f64))
}

/// The text between quotes, escapes left as they are, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start().strip_prefix('"')?;
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some((&text[..index], &text[index + 1..])),
            _ => {}
        }
    }
    Some((text, ""))
}

/// Method, path and protocol. A path may hold blanks, and broken clients send anything: what is
/// not a request line is a path as a whole.
fn split_request(request: &str) -> (&str, &str, &str) {
    if request == "-" {
        return ("", "", "");
    }
    let Some((method, rest)) = request.split_once(' ') else {
        return ("", request, "");
    };
    match rest.rsplit_once(' ') {
        Some((path, protocol)) if protocol.starts_with("HTTP/") => (method, path, protocol),
        _ => (method, rest, ""),
    }
}

fn dash_is_nothing(text: &str) -> &str {
    if text == "-" { "" } else { text }
}

/// Undoes the escapes that Apache writes: `\"`, `\\`, `\n`, `\t`, `\xHH`.
fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'n') => bytes.push(b'\n'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'x') => bytes.extend(hex_pair(&mut rest)),
            Some(other) => bytes.push(other),
            None => bytes.push(b'\\'),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_pair(rest: &mut std::str::Bytes<'_>) -> Option<u8> {
    let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high * 16 + low).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn show(line: &str) -> String {
        match parse(line.as_bytes()) {
            Ok(event) => format!(
                "{} | {} | {:?} | {:?} | {}",
                event.user_id,
                event.page_url,
                event.occurred_at_us.map(crate::times::show),
                event.value,
                String::from_utf8_lossy(&event.properties),
            ),
            Err(reason) => format!("bad: {reason}"),
        }
    }

    #[test]
    fn lines_as_servers_write_them() {
        insta::assert_snapshot!(show(r#"83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a.png HTTP/1.1" 200 203023 "http://x.org/" "Mozilla/5.0 (X11)""#), @r#"83.149.9.216 | /a.png | Some("2015-05-17T10:05:03Z") | Some(203023.0) | {"method":"GET","status":200,"referer":"http://x.org/","user_agent":"Mozilla/5.0 (X11)","protocol":"HTTP/1.1"}"#);
        insta::assert_snapshot!(show(r#"::1 - frank smith [17/May/2015:12:05:03 +0200] "HEAD / HTTP/1.0" 304 - "-" "-""#), @r#"::1 | / | Some("2015-05-17T10:05:03Z") | None | {"method":"HEAD","status":304,"protocol":"HTTP/1.0"}"#);
        insta::assert_snapshot!(show(r#"h - - [17/May/2015:10:05:03 +0000] "GET /a b?q=\"x\" HTTP/1.1" 200 1 "-" "says \"hi\" \\ \xc3\xa9""#), @r#"h | /a b?q=\"x\" | Some("2015-05-17T10:05:03Z") | Some(1.0) | {"method":"GET","status":200,"user_agent":"says \"hi\" \\ é","protocol":"HTTP/1.1"}"#);
    }

    #[test]
    fn lines_that_are_odd_but_true() {
        insta::assert_snapshot!(show(r#"h - - [17/May/2015:10:05:03 +0000] "-" 408 -"#), @r#"h |  | Some("2015-05-17T10:05:03Z") | None | {"status":408}"#);
        insta::assert_snapshot!(show(r#"h - - [17/May/2015:10:05:03 +0000] "GET /x" 200 5"#), @r#"h | /x | Some("2015-05-17T10:05:03Z") | Some(5.0) | {"method":"GET","status":200}"#);
        insta::assert_snapshot!(show(r#"h - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "bot/1 (+http://x"#), @r#"h | / | Some("2015-05-17T10:05:03Z") | Some(5.0) | {"method":"GET","status":200,"user_agent":"bot/1 (+http://x","protocol":"HTTP/1.1"}"#);
        insta::assert_snapshot!(show(r#"h - - [17/May/2015:10:05:03 +0000] "\x16\x03" 400 0 "-" "-" 12ms"#), @r#"h | \x16\x03 | Some("2015-05-17T10:05:03Z") | Some(0.0) | {"status":400}"#);
    }

    #[test]
    fn lines_that_cannot_be_read_say_why() {
        let cases = [
            ("", "client address"),
            ("hello world", "[time]"),
            ("h - - [17/May/2015", "does not end"),
            (
                "h - - [17/Mai/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1",
                "no time like",
            ),
            (
                "h - - [17/May/2015:10:05:03 +0000] GET / HTTP/1.1 200 1",
                "request",
            ),
            (
                "h - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 2000 1",
                "HTTP status",
            ),
            (
                "h - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1k",
                "number of bytes",
            ),
            (
                "h - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\"",
                "HTTP status",
            ),
        ];
        for (line, reason) in cases {
            let found = parse(line.as_bytes()).expect_err(line);
            assert!(found.contains(reason), "{line}: {found}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_text_in_quotes_never_panics(text in ".{0,60}") {
            let line = format!("h - - [17/May/2015:10:05:03 +0000] \"{text}\" 200 1 \"{text}\" \"{text}\"");
            let _ = parse(line.as_bytes());
        }
    }
}
