//! A terminal for tests: a pseudo-terminal whose other end a test reads and types on.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

/// Longest wait for something to be drawn.
const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// A terminal.
pub struct Terminal {
    keyboard: File,
    device: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// A terminal of this size.
    pub fn new(columns: u16, rows: u16) -> Self {
        let other_end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&other_end).expect("granted");
        unlockpt(&other_end).expect("unlocked");
        let name = ptsname(&other_end, Vec::new()).expect("a name");
        let path = std::ffi::OsStr::from_bytes(name.as_bytes());
        let device = File::options().read(true).write(true).open(path);
        let device = device.expect("it can be opened");
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&device, size).expect("it takes a size");
        let keyboard = File::from(other_end);
        let mut screen = keyboard.try_clone().expect("a second handle");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keeps = Arc::clone(&seen);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                let mut kept = keeps.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&bytes[..count]);
            }
        });
        Self {
            keyboard,
            device,
            seen,
        }
    }

    /// The command with this terminal as input and output.
    pub fn carries(&self, command: &mut Command) {
        let device = || self.device.try_clone().expect("another handle");
        command.stdin(device()).stdout(device()).stderr(device());
    }

    /// Types.
    pub fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    /// Everything that was written to it so far.
    pub fn text(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Waits until this was written.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.text().contains(text) {
            assert!(Instant::now() < end, "no `{text}` in {:?}", self.text());
            pause();
        }
    }

    /// Whether it reads lines and echoes them, as a shell left it.
    pub fn is_as_before(&self) -> bool {
        let modes = tcgetattr(&self.device).expect("its modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "polls for what another process does"
)]
pub fn pause() {
    thread::sleep(PAUSE);
}
