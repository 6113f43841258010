//! Reading JSON by hand, held against `serde_json`.

use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

fn accepts(text: &str) -> bool {
    let mut scanner = Scanner::new(text, 0, 0);
    scanner.skip_value(DEPTH_LIMIT).is_ok() && {
        scanner.skip_space();
        scanner.at() == text.len()
    }
}

/// Texts that are JSON, or nearly.
fn nearly_json() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(","),
        Just(":"),
        Just("\"a\""),
        Just("\"\\n\\u00e9\""),
        Just("\"\\ud83d\""),
        Just("\"\\x\""),
        Just("\"\u{1}\""),
        Just("0"),
        Just("-1.5e+3"),
        Just("01"),
        Just("1."),
        Just("null"),
        Just("true"),
        Just("fals"),
        Just(" "),
        Just("\n"),
        Just("\"äöü long enough for a word\""),
    ];
    prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn it_accepts_what_serde_json_accepts(text in nearly_json()) {
        prop_assert_eq!(accepts(&text), serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{}", text);
    }

    #[test]
    fn it_accepts_all_json_and_finds_its_end(value in json(), cut in any::<prop::sample::Index>()) {
        let text = serde_json::to_string_pretty(&value).unwrap();
        prop_assert!(accepts(&text), "{}", text);
        if value.is_object() || value.is_array() || value.is_string() {
            prop_assert_eq!(extent(text.as_bytes(), 0), Some(text.len()));
            let cut = cut.index(text.len());
            prop_assert_eq!(extent(&text.as_bytes()[..cut], 0), None, "cut at {}", cut);
        }
    }

    #[test]
    fn strings_come_out_as_they_went_in(value in any::<String>()) {
        let text = serde_json::to_string(&value).unwrap();
        prop_assert_eq!(Scanner::new(&text, 0, 0).string().unwrap(), value);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), start in 0usize..200) {
        let _ = extent(&bytes, start);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Scanner::new(&text, 0, 0).skip_value(8);
        let _ = Scanner::new(&text, 0, 0).string();
    }

    #[test]
    fn a_word_at_a_time_finds_what_a_byte_at_a_time_finds(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let slow = bytes.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\');
        prop_assert_eq!(plain_end(&bytes, 0), slow.unwrap_or(bytes.len()));
    }
}

#[test]
fn nesting_is_bounded() {
    for (depth, allowed) in [
        (1, true),
        (4, true),
        (5, false),
        (1000, false),
        (100_000, false),
    ] {
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let result = Scanner::new(&text, 0, 0).skip_value(4);
        assert_eq!(result.is_ok(), allowed, "{depth}");
        assert_eq!(extent(text.as_bytes(), 0), Some(text.len()), "{depth}");
    }
}

#[test]
fn errors_name_the_byte() {
    for (text, at) in [
        ("{\"a\" 1}", 5),
        ("{\"a\":1,}", 7),
        ("[1 2]", 3),
        ("\"\\q\"", 2),
        ("[1", 2),
    ] {
        let error = Scanner::new(text, 0, 100).skip_value(8).unwrap_err();
        let SkipError::Syntax(syntax) = error else {
            panic!("{text}: {error:?}")
        };
        assert_eq!(syntax.at, 100 + at, "{text}: {syntax:?}");
    }
}
