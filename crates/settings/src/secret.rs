//! Values that must not be seen. They hide from Debug, Display and Serialize alike, so that neither a log line nor
//! `--print-config` gives them away. Only the loader, which copies settings from one layer to the next, serialises
//! what is inside.

use std::cell::Cell;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

const HIDDEN: &str = "***";

thread_local! {
    /// Set while the loader turns settings into a tree on this thread.
    static EXPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with secrets serialised as they are.
pub(crate) fn exposing<R>(f: impl FnOnce() -> R) -> R {
    /// Hides again even when `f` unwinds.
    struct Hide(bool);
    impl Drop for Hide {
        fn drop(&mut self) {
            EXPOSED.set(self.0);
        }
    }
    let _hide = Hide(EXPOSED.replace(true));
    f()
}

/// A password or token.
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The secret itself. What it returns must not be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn shown(&self) -> &str {
        if self.0.is_empty() { "" } else { HIDDEN }
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Secret(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Secret(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.shown(), f)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if EXPOSED.get() { &self.0 } else { self.shown() })
    }
}

/// A URL that may hold a password, which it hides.
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    pub fn new(url: impl Into<String>) -> Self {
        SecretUrl(url.into())
    }

    /// The URL with its password. What it returns must not be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for SecretUrl {
    fn from(url: String) -> Self {
        SecretUrl(url)
    }
}

impl From<&str> for SecretUrl {
    fn from(url: &str) -> Self {
        SecretUrl(url.to_owned())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&redact_url(&self.0), f)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact_url(&self.0))
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if EXPOSED.get() {
            serializer.serialize_str(&self.0)
        } else {
            serializer.serialize_str(&redact_url(&self.0))
        }
    }
}

/// The URL with its password, if it has one, replaced by `***`; so is the value of a `password` parameter.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    // A password that was not percent-encoded may hold any of `/?#@`, so when in doubt more is hidden, not less: what
    // stands before the last `@` of the authority counts as user and password.
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let at = match rest[..end].rfind('@') {
        Some(at) => Some(at),
        None if rest[..end].contains(':') && !has_port(&rest[..end]) => rest.rfind('@'),
        None => None,
    };
    let (userinfo, host) = match at {
        Some(at) => (&rest[..at], &rest[at..]),
        None => ("", rest),
    };
    let userinfo = match userinfo.split_once(':') {
        Some((user, _)) => format!("{user}:{HIDDEN}"),
        None => userinfo.to_owned(),
    };
    format!("{scheme}://{userinfo}{}", redact_query(host))
}

fn has_port(authority: &str) -> bool {
    authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn redact_query(rest: &str) -> String {
    let Some((path, query)) = rest.split_once('?') else {
        return rest.to_owned();
    };
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if name.to_ascii_lowercase().contains("password") => {
                format!("{name}={HIDDEN}")
            }
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{path}?{}", parameters.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_hide() {
        let secret = Secret::from("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), r#"*** "***""#);
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#""***""#);
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(
            Secret::default().to_string(),
            "",
            "an unset one shows that it is unset"
        );
    }

    #[test]
    fn exposing_ends_with_its_scope_even_on_a_panic() {
        let secret = Secret::from("hunter2");
        let shown = || serde_json::to_string(&secret).unwrap();
        assert_eq!(exposing(shown), r#""hunter2""#);
        assert_eq!(shown(), r#""***""#);
        let unwound = std::panic::catch_unwind(|| exposing(|| panic!("on purpose")));
        assert!(unwound.is_err());
        assert_eq!(shown(), r#""***""#);
    }

    #[test]
    fn urls_lose_their_passwords() {
        for (url, redacted) in [
            ("postgres://u:p@db:5432/x", "postgres://u:***@db:5432/x"),
            ("postgres://u:p%40q@db/x?a=b", "postgres://u:***@db/x?a=b"),
            ("postgres://u:p@q@db/x", "postgres://u:***@db/x"),
            ("postgres://u:p/q@db/x", "postgres://u:***@db/x"),
            (
                "postgres://db/x?user=u&password=p&a=b",
                "postgres://db/x?user=u&password=***&a=b",
            ),
            ("redis://:p@cache:6379", "redis://:***@cache:6379"),
            ("postgres://u@db/x", "postgres://u@db/x"),
            ("http://collector:4317", "http://collector:4317"),
            ("http://[::1]:4317/a@b", "http://[::1]:4317/a@b"),
            ("sqlite:data.db", "sqlite:data.db"),
            ("", ""),
        ] {
            assert_eq!(redact_url(url), redacted);
            assert_eq!(SecretUrl::from(url).to_string(), redacted);
        }
    }
}
