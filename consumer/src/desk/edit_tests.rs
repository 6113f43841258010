//! Edits on readable and unreadable events.

use proptest::prelude::*;

use super::*;
use crate::{
    core::reject::Reason,
    desk::test_records::{chunk, letter_headers},
};

fn event() -> Event {
    Event {
        event_id: String::from("e"),
        user_id: String::from("u"),
        event_type: String::from("click"),
        occurred_at_us: 1_700_000_000_000_000,
        properties: bytes::Bytes::from_static(
            b"{\"kind\":\"view\",\"big\":123456789012345678901234567890,\"n\":1.50}",
        ),
        ..Event::default()
    }
}

fn stored(value: &[u8]) -> Stored {
    let headers = letter_headers("events", 4, 9, Reason::Late, 1);
    let chunk = chunk(0, Some(b"key"), Some(value), &headers);
    Stored::of(&chunk.get(0).unwrap()).unwrap()
}

fn request(renames: &[&str], sets: &[&str]) -> v1::ReplayDeadLettersRequest {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    v1::ReplayDeadLettersRequest {
        rename: owned(renames),
        set: owned(sets),
        ..v1::ReplayDeadLettersRequest::default()
    }
}

fn mend(event: &Event, renames: &[&str], sets: &[&str]) -> Result<Event, EditError> {
    let edit = Edit::read(&request(renames, sets))?;
    let mended = edit.apply(&stored(&event.encode_to_vec()))?;
    let event = Event::decode(&*mended.value.unwrap()).unwrap();
    if !event.user_id.is_empty() {
        assert_eq!(mended.key.unwrap(), event.user_id.as_bytes());
    }
    Ok(event)
}

#[test]
fn sets_write_every_field() {
    let sets = [
        "event_id=e2",
        "user_id=u2",
        "event_type=a=b",
        "occurred_at=2024-05-01T00:00:00Z",
        "page_url=/x",
        "session_id=s",
        "value=2.5",
        "historical=true",
        "properties.n={\"a\":1}",
        "properties.text=not json",
    ];
    let mended = mend(&event(), &[], &sets).unwrap();
    let expected = Event {
        event_id: String::from("e2"),
        user_id: String::from("u2"),
        event_type: String::from("a=b"),
        occurred_at_us: 1_714_521_600_000_000,
        page_url: String::from("/x"),
        session_id: String::from("s"),
        value: Some(2.5),
        historical: true,
        properties: mended.properties.clone(),
        ..event()
    };
    assert_eq!(mended, expected);
    // What was not named is as it was written: no number loses digits.
    assert_eq!(
        mended.properties,
        "{\"big\":123456789012345678901234567890,\"kind\":\"view\",\"n\":{\"a\":1},\"text\":\"not json\"}"
    );
}

#[test]
fn renames_move_a_value() {
    let mended = mend(&event(), &["properties.kind=event_type"], &[]).unwrap();
    assert_eq!(mended.event_type, "view");
    assert!(!String::from_utf8_lossy(&mended.properties).contains("kind"));
    let mended = mend(&event(), &["event_type=properties.type"], &["event_type=x"]).unwrap();
    assert_eq!(mended.event_type, "x");
    assert!(String::from_utf8_lossy(&mended.properties).contains("\"type\":\"click\""));
    let mended = mend(&event(), &["properties.n=value"], &[]).unwrap();
    assert_eq!(mended.value, Some(1.5));
    let mended = mend(&event(), &[], &["occurred_at=1714521600"]).unwrap();
    assert_eq!(mended.occurred_at_us, 1_714_521_600_000_000);
}

#[test]
fn what_does_not_fit_is_told() {
    let cases: [(&[&str], &[&str], &str); 9] = [
        (&[], &["user_id"], "FIELD=VALUE"),
        (&[], &["tenant=x"], "`tenant` cannot be edited"),
        (&[], &["received_at=1"], "cannot be edited"),
        (&[], &["properties.=1"], "cannot be edited"),
        (&[], &["value=NaN"], "value takes a finite number"),
        (&[], &["historical=maybe"], "true or false"),
        (&[], &["properties=[1]"], "not a JSON object"),
        (
            &["properties.none=user_id"],
            &[],
            "has no properties.none to rename",
        ),
        (&["properties=user_id"], &[], "cannot be renamed as a whole"),
    ];
    for (renames, sets, expected) in cases {
        let error = mend(&event(), renames, sets).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let edit = Edit::read(&request(&[], &["user_id=x"])).unwrap();
    let error = edit.apply(&stored(b"\xff\xff")).unwrap_err().to_string();
    assert!(error.contains("nothing to edit"), "{error}");
}

#[test]
fn without_an_edit_nothing_changes_and_ids_come_from_the_first_place() {
    let raw = stored(b"\xff\xff");
    let same = Edit::default().apply(&raw).unwrap();
    assert_eq!((same.key, same.value), (raw.key, raw.value));
    let nameless = Event {
        event_id: String::new(),
        ..event()
    };
    let edit = Edit {
        assign_ids: true,
        ..Edit::default()
    };
    let mended = edit.apply(&stored(&nameless.encode_to_vec())).unwrap();
    let mended = Event::decode(&*mended.value.unwrap()).unwrap();
    assert_eq!(mended.event_id, "dlq-4-9");
    // A rekeyed event keeps its bytes.
    let edit = Edit {
        rekey: true,
        ..Edit::default()
    };
    let mut unknown = event().encode_to_vec();
    unknown.extend([0xf8, 0x01, 7]);
    let mended = edit.apply(&stored(&unknown)).unwrap();
    assert_eq!(
        (mended.key.unwrap(), mended.value.unwrap()),
        (b"u".to_vec(), unknown)
    );
}

proptest! {
    #[test]
    fn foreign_edits_never_panic(
        field in "(event_id|value|occurred_at|historical|properties|properties\\.[a-z]{0,3}|[a-z]{0,5})",
        value in "\\PC{0,12}", properties in prop::collection::vec(any::<u8>(), 0..20), rename in any::<bool>()
    ) {
        let event = Event { properties: properties.into(), ..event() };
        let text = format!("{field}={value}");
        let (renames, sets): (&[&str], &[&str]) = if rename { (&[&text], &[]) } else { (&[], &[&text]) };
        let _ = mend(&event, renames, sets);
    }

    #[test]
    fn a_set_text_is_there_and_nothing_else_changes(value in "\\PC{1,30}") {
        let mended = mend(&event(), &[], &[&format!("session_id={value}")]).unwrap();
        prop_assert_eq!(mended, Event { session_id: value, ..event() });
    }

    #[test]
    fn a_rename_there_and_back_changes_nothing(value in "\\PC{1,30}") {
        let before = Event { session_id: value, ..event() };
        let there = mend(&before, &["session_id=properties.s"], &[]).unwrap();
        let back = mend(&there, &["properties.s=session_id"], &[]).unwrap();
        prop_assert_eq!(back.session_id, before.session_id);
    }
}
