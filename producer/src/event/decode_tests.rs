use proptest::prelude::*;

use super::*;

type Events = Vec<Result<(String, String), (ErrorCode, Option<&'static str>)>>;

fn limits() -> EventLimits {
    EventLimits {
        batch_events_max: 5,
        event_bytes_max: 400,
        properties_bytes_max: 200,
        ..EventLimits::default()
    }
}

/// The user and type of each event read, or why it was refused.
fn run_as(body: &[u8], format: Format, shape: Shape) -> Result<(Events, Summary), BodyError> {
    let mut events = Vec::new();
    let limits = limits();
    let summary = decode(body, format, shape, &limits, |event| {
        let text = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned).unwrap_or_default();
        events.push(match event {
            Ok(draft) => Ok((text(draft.user_id), text(draft.event_type))),
            Err(rejection) => Err((rejection.code, rejection.field)),
        });
    })?;
    Ok((events, summary))
}

fn run(body: &str) -> Result<(Events, Summary), BodyError> {
    run_as(body.as_bytes(), Format::Json, Shape::EVENT)
}

fn event(user: &str) -> Result<(String, String), (ErrorCode, Option<&'static str>)> {
    Ok((user.to_owned(), "click".to_owned()))
}

#[test]
fn every_shape_of_body_yields_its_events() {
    let (a, b) = (
        r#"{"user_id":"a","event_type":"click"}"#,
        r#"{"user_id":"b","event_type":"click"}"#,
    );
    let two = vec![event("a"), event("b")];
    for body in [
        format!("[{a},{b}]"),
        format!(" [ {a} , {b} ] \n"),
        format!(r#"{{"events":[{a},{b}]}}"#),
        format!(r#"{{ "note": {{"x":[1]}}, "events" : [{a} , {b}], "more":1 }}"#),
        format!("\u{feff}[{a},{b}]"),
    ] {
        assert_eq!(run(&body).unwrap().0, two, "{body}");
        assert!(!run(&body).unwrap().1.single);
    }
    for lines in [
        format!("{a}\n{b}"),
        format!("{a}\r\n\n  \n{b}\n"),
        format!("\n {a} \n{b}\r\n"),
    ] {
        assert_eq!(
            run_as(lines.as_bytes(), Format::Lines, Shape::EVENT)
                .unwrap()
                .0,
            two,
            "{lines}"
        );
    }
    let (events, summary) = run(a).unwrap();
    assert_eq!((events, summary.single), (vec![event("a")], true));
}

#[test]
fn a_body_without_an_outline_is_refused_as_a_whole() {
    let good = r#"{"user_id":"a","event_type":"click"}"#;
    for (body, at) in [
        ("x".to_owned(), 0),
        ("\"text\"".to_owned(), 0),
        ("{\"user_id\":}".to_owned(), 11),
        ("{\"user_id\" \"a\"}".to_owned(), 11),
        ("{\"user_id\":\"a\",}".to_owned(), 15),
        ("{\"user_id\":\"a\"".to_owned(), 14),
        (format!("[{good}"), 37),
        (format!("[{good},]"), 38),
        (format!("[{good} {good}]"), 38),
        (format!("{good}{good}"), 36),
        (format!("[{good},{{\"user_id\":\"b]"), 52),
        (format!("{{\"events\":[{good}}}"), 47),
        (format!("{{\"events\":[{good}] \"x\":1}}"), 49),
        (format!("[{good}]]"), 38),
    ] {
        match run(&body) {
            Err(BodyError::Syntax(syntax)) => assert_eq!(syntax.at, at, "{body}: {syntax:?}"),
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn a_body_without_events_is_empty() {
    for body in ["", " \n", "\u{feff}", "[]", "[ ]", r#"{"events":[]}"#] {
        assert_eq!(run(body), Err(BodyError::Empty), "{body:?}");
        let problem = Problem::from(BodyError::Empty);
        assert_eq!(problem.code, ErrorCode::EmptyBody);
    }
    assert_eq!(
        run_as(b"\n \n", Format::Lines, Shape::EVENT),
        Err(BodyError::Empty)
    );
}

#[test]
fn a_bad_element_is_refused_alone() {
    let good = r#"{"user_id":"a","event_type":"click"}"#;
    let deep = format!(
        r#"{{"user_id":"a","properties":{{"a":{}1{}}}}}"#,
        "[".repeat(40),
        "]".repeat(40)
    );
    let deeper = format!(r#"{{"unknown":{}{}}}"#, "[".repeat(150), "]".repeat(150));
    let large = format!(r#"{{"user_id":"a","unknown":"{}"}}"#, "x".repeat(400));
    let cases = [
        ("1", ErrorCode::WrongType, None),
        ("null", ErrorCode::WrongType, None),
        ("\"text\"", ErrorCode::WrongType, None),
        ("[]", ErrorCode::WrongType, None),
        ("{\"user_id\":1}", ErrorCode::WrongType, Some("user_id")),
        (
            "{\"event_type\":{}}",
            ErrorCode::WrongType,
            Some("event_type"),
        ),
        (
            "{\"page_url\":[\"/\"]}",
            ErrorCode::WrongType,
            Some("page_url"),
        ),
        ("{\"value\":\"1\"}", ErrorCode::WrongType, Some("value")),
        (
            "{\"occurred_at\":true}",
            ErrorCode::WrongType,
            Some("occurred_at"),
        ),
        (
            "{\"timestamp\":{}}",
            ErrorCode::WrongType,
            Some("timestamp"),
        ),
        (
            "{\"properties\":\"{}\"}",
            ErrorCode::WrongType,
            Some("properties"),
        ),
        (
            "{\"properties\":[]}",
            ErrorCode::WrongType,
            Some("properties"),
        ),
        (
            "{\"user_id\":\"a\" \"b\":1}",
            ErrorCode::MalformedBody,
            None,
        ),
        ("{\"user_id\":tru}", ErrorCode::MalformedBody, None),
        ("{\"user_id\":\"a\u{1}\"}", ErrorCode::MalformedBody, None),
        ("{\"user_id\":\"\\ud800\"}", ErrorCode::MalformedBody, None),
        ("{user_id:1}", ErrorCode::MalformedBody, None),
        ("nul", ErrorCode::MalformedBody, None),
        (&deep, ErrorCode::TooDeep, Some("properties")),
        (&deeper, ErrorCode::TooDeep, None),
        (&large, ErrorCode::EventTooLarge, None),
    ];
    for (bad, code, field) in cases {
        let expected = vec![event("a"), Err((code, field)), event("a")];
        assert_eq!(
            run(&format!("[{good},{bad},{good}]")).unwrap().0,
            expected,
            "{bad}"
        );
        let lines = format!("{good}\n{bad}\n{good}");
        assert_eq!(
            run_as(lines.as_bytes(), Format::Lines, Shape::EVENT)
                .unwrap()
                .0,
            expected,
            "{bad}"
        );
    }
}

#[test]
fn a_thousand_levels_cost_nothing() {
    let deep = format!(
        r#"{{"user_id":"a","properties":{{"a":{}{}}}}}"#,
        "[".repeat(1000),
        "]".repeat(1000)
    );
    let mut wide = limits();
    wide.event_bytes_max = 10_000;
    let mut codes = Vec::new();
    let body = format!("[{deep},{{\"user_id\":\"b\"}}]");
    decode(
        body.as_bytes(),
        Format::Json,
        Shape::EVENT,
        &wide,
        |event| codes.push(event.map_err(|r| r.code).err()),
    )
    .unwrap();
    assert_eq!(codes, [Some(ErrorCode::TooDeep), None]);
    let mut single = Vec::new();
    decode(
        deep.as_bytes(),
        Format::Json,
        Shape::EVENT,
        &wide,
        |event| single.push(event.map_err(|r| r.code).err()),
    )
    .unwrap();
    assert_eq!(
        single,
        [Some(ErrorCode::TooDeep)],
        "one object alone gets a verdict as well"
    );
}

#[test]
fn an_element_that_is_not_utf8_is_refused_alone() {
    let good: &[u8] = br#"{"user_id":"a","event_type":"click"}"#;
    let bad: &[u8] = b"{\"user_id\":\"\xff\xfe\"}";
    let expected = vec![
        event("a"),
        Err((ErrorCode::MalformedBody, None)),
        event("a"),
    ];
    let bodies = [
        (
            [b"[".as_slice(), good, b",", bad, b",", good, b"]"].concat(),
            Format::Json,
        ),
        (
            [
                b"{\"events\":[".as_slice(),
                good,
                b",",
                bad,
                b" , ",
                good,
                b"] }",
            ]
            .concat(),
            Format::Json,
        ),
        ([good, b"\n", bad, b"\n", good].concat(), Format::Lines),
    ];
    for (body, format) in bodies {
        assert_eq!(run_as(&body, format, Shape::EVENT).unwrap().0, expected);
    }
    for body in [bad, b"[{\"user_id\":\"\xff]", b"{\"events\":[{}] \xff}"] {
        assert!(
            run_as(body, Format::Json, Shape::EVENT).is_err(),
            "{body:?}"
        );
    }
}

#[test]
fn too_many_events_refuse_the_body() {
    let body = format!("[{}]", ["{}"; 6].join(","));
    assert_eq!(run(&body), Err(BodyError::TooManyEvents { max: 5 }));
    assert_eq!(
        run(&format!("[{}]", ["{}"; 5].join(","))).unwrap().0.len(),
        5
    );
}

#[test]
fn fields_are_read_as_they_were_written() {
    let body = r#"{"event_id":"e\u00e91","user_id":"u\\1","event_type":"buy","occurred_at":1763724600,"page_url":null,
        "session_id":"s","value":-1.5e2,"properties":{"a" : [1, {"b":"}"}]},"more":{"x":1},"user_id":"last"}"#;
    let mut drafts = Vec::new();
    let summary = decode(
        body.as_bytes(),
        Format::Json,
        Shape::EVENT,
        &limits(),
        |event| drafts.push(event.unwrap()),
    );
    let expected = Draft {
        event_id: Some("eé1".into()),
        user_id: Some("last".into()),
        event_type: Some("buy".into()),
        page_url: None,
        session_id: Some("s".into()),
        value: Some(-150.0),
        properties: Some(r#"{"a" : [1, {"b":"}"}]}"#),
        occurred_at: Moment::Number("occurred_at", "1763724600"),
    };
    assert_eq!(drafts, [expected]);
    assert_eq!(
        summary.unwrap(),
        Summary {
            single: true,
            unknown_fields: 1
        }
    );
}

#[test]
fn an_activity_has_its_own_names() {
    let body = br#"[{"user_id":"a","activity_type":"click","metadata":{}},{"activity_type":1},{"metadata":1}]"#;
    let (events, _) = run_as(body, Format::Json, Shape::ACTIVITY).unwrap();
    let wrong = |field| Err((ErrorCode::WrongType, Some(field)));
    assert_eq!(
        events,
        [event("a"), wrong("activity_type"), wrong("metadata")]
    );
}

#[test]
fn properties_of_other_sources_are_checked_too() {
    let limits = limits();
    for text in ["{}", " {\"a\":1} "] {
        check_properties(text, &limits).unwrap();
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(40), "]".repeat(40));
    for (text, code) in [
        ("[]", ErrorCode::WrongType),
        ("", ErrorCode::WrongType),
        ("{", ErrorCode::InvalidValue),
        ("{} {}", ErrorCode::InvalidValue),
        (&deep, ErrorCode::TooDeep),
    ] {
        assert_eq!(
            check_properties(text, &limits).unwrap_err().code,
            code,
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn good_neighbours_are_unharmed(bad in "[^\\[\\]{}\",\\\\\n]{1,20}", at in 0usize..4) {
        let good = r#"{"user_id":"a","event_type":"click"}"#;
        let mut elements = vec![good; 3];
        prop_assume!(!bad.trim_ascii().is_empty());
        elements.insert(at, &bad);
        if let Ok((events, _)) = run(&format!("[{}]", elements.join(","))) {
            prop_assert_eq!(events.len(), 4);
            for (index, found) in events.into_iter().enumerate() {
                prop_assert_eq!(found.is_ok(), index != at);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in prop::collection::vec(prop_oneof![
            any::<u8>(), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b':'), Just(b','), Just(b'\n'),
        ], 0..120),
    ) {
        for format in [Format::Json, Format::Lines] {
            for prefix in ["", "[", "{\"events\":[", "{\"user_id\":"] {
                let body = [prefix.as_bytes(), &bytes].concat();
                let _ = run_as(&body, format, Shape::EVENT);
            }
        }
    }

    #[test]
    fn what_serde_json_reads_is_read_the_same(
        user in any::<String>(), kind in any::<String>(), value in any::<i32>(), page in any::<Option<String>>(),
    ) {
        let json = serde_json::json!({
            "user_id": user, "event_type": kind, "value": value, "page_url": page, "properties": {"p": page},
        });
        let body = json.to_string();
        let mut drafts = Vec::new();
        let wide = EventLimits { event_bytes_max: 1 << 20, ..limits() };
        decode(body.as_bytes(), Format::Json, Shape::EVENT, &wide, |event| drafts.push(event.unwrap())).unwrap();
        let draft = &drafts[0];
        prop_assert_eq!(draft.user_id.as_deref(), Some(user.as_str()));
        prop_assert_eq!(draft.event_type.as_deref(), Some(kind.as_str()));
        prop_assert_eq!(draft.page_url.as_deref(), page.as_deref());
        prop_assert_eq!(draft.value, Some(f64::from(value)));
        let properties: serde_json::Value = serde_json::from_str(draft.properties.unwrap()).unwrap();
        prop_assert_eq!(&properties, &json["properties"]);
    }
}
