//! What stands on screens of several sizes, and what keys do.

use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::Buffer,
    style::{Color, Modifier},
};

use super::*;
use crate::watch::{
    model::examples::{NOW_US, busy, trouble},
    visits::Visits,
};

/// Sizes that are promised, and some that nobody should have.
const SIZES: [(u16, u16); 9] = [
    (120, 40),
    (80, 24),
    (60, 15),
    (40, 10),
    (24, 5),
    (23, 5),
    (24, 4),
    (1, 1),
    (0, 0),
];

fn app(colour: bool) -> App {
    App::new(Palette { colour }, String::from("1 s"))
}

fn press(app: &mut App, keys: &[KeyCode]) {
    for key in keys {
        assert_eq!(app.key(KeyEvent::from(*key)), Next::On, "{key}");
    }
}

fn drawn(app: &mut App, visits: &Visits, (width, height): (u16, u16)) -> Buffer {
    let model = Model::of(visits, NOW_US);
    let mut history = History::default();
    for second in 0..20 {
        history.push((0..6).map(|row| Some(f64::from((second * (row + 1)) % 8))));
    }
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    let draw = |frame: &mut Frame| app.draw(frame, &model, &history);
    terminal.draw(draw).expect("memory").buffer.clone()
}

fn text(buffer: &Buffer) -> String {
    let area = buffer.area();
    let row = |y| {
        let cells = (0..area.width).map(move |x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    (0..area.height).map(row).collect()
}

fn screen(app: &mut App, visits: &Visits, size: (u16, u16)) -> String {
    text(&drawn(app, visits, size))
}

#[test]
fn the_overview_of_a_healthy_system() {
    for size in &SIZES[..3] {
        let name = format!("healthy_{}x{}", size.0, size.1);
        insta::assert_snapshot!(name, screen(&mut app(false), &busy(), *size));
    }
}

#[test]
fn the_overview_of_a_system_in_trouble() {
    for size in &SIZES[..3] {
        let name = format!("trouble_{}x{}", size.0, size.1);
        insta::assert_snapshot!(name, screen(&mut app(false), &trouble(), *size));
    }
}

#[test]
fn the_other_views() {
    for (key, name) in [
        ('2', "partitions"),
        ('3', "ledger"),
        ('4', "alerts"),
        ('?', "help"),
    ] {
        for size in &SIZES[1..3] {
            let mut app = app(false);
            press(&mut app, &[KeyCode::Char(key)]);
            let name = format!("{name}_{}x{}", size.0, size.1);
            insta::assert_snapshot!(name, screen(&mut app, &trouble(), *size));
        }
    }
}

#[test]
fn colour_adds_no_meaning() {
    for size in SIZES {
        for key in ['1', '2', '3', '4', '?'] {
            let buffers = [false, true].map(|colour| {
                let mut app = app(colour);
                press(&mut app, &[KeyCode::Char(key)]);
                drawn(&mut app, &trouble(), size)
            });
            let [plain, coloured] = &buffers;
            assert_eq!(text(plain), text(coloured), "{size:?} {key}");
            for cell in plain.content() {
                assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset));
            }
        }
    }
}

#[test]
fn with_colour_what_is_broken_is_red_and_what_is_well_green() {
    let buffer = drawn(&mut app(true), &trouble(), (80, 24));
    let at = |word: &str| {
        let text = text(&buffer);
        let (y, line) = text
            .lines()
            .enumerate()
            .find(|(_, line)| line.contains(word))
            .expect("it is there");
        let x = columns(&line[..line.find(word).expect("it is there")]);
        &buffer[(x as u16, y as u16)]
    };
    assert_eq!(at("BROKEN").fg, Color::Red);
    assert_eq!(at("NO ANSWER").fg, Color::Red);
    assert_eq!(at("ready").fg, Color::Green);
    assert!(at("[1 Overview]").modifier.contains(Modifier::REVERSED));
}

#[test]
fn keys_lead_from_view_to_view() {
    let (mut app, visits) = (app(false), busy());
    let mut shows = |keys: &[KeyCode]| {
        press(&mut app, keys);
        let screen = screen(&mut app, &visits, (80, 24));
        let tabs = screen.lines().nth(1).unwrap_or_default();
        let (_, shown) = tabs.split_once('[').expect("one is shown");
        shown.split_once(']').expect("one is shown").0.to_owned()
    };
    assert_eq!(shows(&[]), "1 Overview");
    assert_eq!(shows(&[KeyCode::Tab]), "2 Partitions");
    assert_eq!(shows(&[KeyCode::Right, KeyCode::Right]), "4 Alerts");
    assert_eq!(shows(&[KeyCode::Tab]), "1 Overview");
    assert_eq!(shows(&[KeyCode::BackTab]), "4 Alerts");
    assert_eq!(shows(&[KeyCode::Char('3')]), "3 Ledger");
    assert_eq!(shows(&[KeyCode::Left]), "2 Partitions");
    assert_eq!(
        shows(&[KeyCode::Char('?'), KeyCode::Char('1')]),
        "1 Overview"
    );
}

#[test]
fn what_does_not_fit_is_scrolled_to() {
    let (mut app, visits) = (app(false), busy());
    let mut place = |keys: &[KeyCode]| {
        press(&mut app, keys);
        let screen = screen(&mut app, &visits, (60, 15));
        let footer = screen.lines().last().unwrap_or_default();
        footer
            .split("  ")
            .last()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    assert_eq!(place(&[]), "1-12 of 36");
    assert_eq!(place(&[KeyCode::Down, KeyCode::Down]), "3-14 of 36");
    assert_eq!(place(&[KeyCode::PageDown]), "15-26 of 36");
    assert_eq!(place(&[KeyCode::End]), "25-36 of 36");
    assert_eq!(place(&[KeyCode::Down]), "25-36 of 36");
    assert_eq!(place(&[KeyCode::Up]), "24-35 of 36");
    assert_eq!(place(&[KeyCode::PageUp]), "12-23 of 36");
    assert_eq!(place(&[KeyCode::Home, KeyCode::Up]), "1-12 of 36");
}

#[test]
fn it_ends_when_it_is_told_to() {
    let held = |key, modifiers| KeyEvent::new(KeyCode::Char(key), modifiers);
    for key in [
        KeyEvent::from(KeyCode::Char('q')),
        KeyEvent::from(KeyCode::Esc),
        held('c', KeyModifiers::CONTROL),
    ] {
        assert_eq!(app(false).key(key), Next::Quit, "{key:?}");
    }
    let mut app = app(false);
    press(
        &mut app,
        &[KeyCode::Char('c'), KeyCode::Char('?'), KeyCode::Esc],
    );
    assert_eq!(app.key(KeyEvent::from(KeyCode::Esc)), Next::Quit);
    let mut released = KeyEvent::from(KeyCode::Char('q'));
    released.kind = KeyEventKind::Release;
    assert_eq!(app.key(released), Next::On);
}

#[test]
fn a_pause_is_told() {
    let mut app = app(false);
    press(&mut app, &[KeyCode::Char('p')]);
    assert!(app.is_paused());
    let paused = screen(&mut app, &busy(), (80, 24));
    assert!(paused.contains("PAUSED at 23:15:46Z"), "{paused}");
    press(&mut app, &[KeyCode::Char('p')]);
    assert!(!screen(&mut app, &busy(), (80, 24)).contains("PAUSED"));
}

#[test]
fn on_a_tiny_screen_the_verdict_stays() {
    let tiny = screen(&mut app(false), &trouble(), (20, 3));
    assert_eq!(tiny.trim_end(), "BROKEN (8)");
}
