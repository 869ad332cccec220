//! `serve --tui`: the server's figures on the whole screen, until it ends.

mod draw;

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engine::{Error, ErrorKind};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use server::{Server, Viewer};

use crate::failure::Result;
use crate::{interrupt, out};
use draw::Screen;

/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Between two looks at keys and at whether the server has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Lines of the log that are kept for the screen.
const LINES: usize = 200;

/// The last lines of the log.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<VecDeque<String>>>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; the oldest goes where there are too many.
    pub(crate) fn push(&self, line: &str) {
        let mut lines = self.lock();
        lines.push_back(out::visible_line(line).into_owned());
        if lines.len() > LINES {
            lines.pop_front();
        }
    }
}

/// Refuses where there is no screen to draw on.
///
/// # Errors
/// `InvalidRequest`.
pub(crate) fn check() -> Result<()> {
    if io::stdout().is_terminal() && io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Error::invalid("--tui draws on a terminal; stdin and stdout must be one").into())
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// The screen, given back when it is dropped.
struct Taken {
    terminal: DefaultTerminal,
    hook: Arc<Hook>,
    /// Whether a panic has given it back, and was told below.
    is_back: Arc<AtomicBool>,
}

impl Taken {
    /// Takes the screen. A panic of this thread gives it back before it is told; one of another thread, which the server
    /// survives, becomes a line of the log.
    fn take(lines: &Lines) -> Result<Self> {
        let hook = Arc::new(std::panic::take_hook());
        let terminal = ratatui::try_init().map_err(|e| {
            restore();
            failed(e)
        })?;
        // That has set a hook too, which gives the screen back whoever panics.
        drop(std::panic::take_hook());
        let (inner, lines, own) = (hook.clone(), lines.clone(), thread::current().id());
        let is_back = Arc::new(AtomicBool::new(false));
        let goes_back = is_back.clone();
        std::panic::set_hook(Box::new(move |panic| {
            if thread::current().id() == own {
                goes_back.store(true, Ordering::SeqCst);
                restore();
                inner(panic);
            } else {
                lines.push(&panic.to_string());
            }
        }));
        Ok(Self { terminal, hook, is_back })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_back.load(Ordering::SeqCst) {
            restore();
        }
        if !thread::panicking() {
            let hook = self.hook.clone();
            std::panic::set_hook(Box::new(move |panic| hook(panic)));
        }
    }
}

fn failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot draw on the terminal").with_source(error)
}

/// Gives the terminal back, taken or not.
pub(crate) fn restore() {
    let _ = ratatui::try_restore(); // nothing better can be done
}

/// Shows what the server does until it has ended. q and Ctrl-C are as Ctrl-C without a screen: they stop it, and the second
/// ends the program. `title` says what is served.
///
/// # Errors
/// `Io` when the terminal fails; the server then stops.
pub(crate) fn run(server: &Server, viewer: Viewer, title: String, lines: &Lines) -> Result<()> {
    let drawn = draw(server, viewer, title, lines);
    if drawn.is_err() {
        server.stop();
    }
    drawn
}

fn draw(server: &Server, mut viewer: Viewer, title: String, lines: &Lines) -> Result<()> {
    let mut taken = Taken::take(lines)?;
    let mut screen = Screen::new(title, out::is_styled(&io::stdout()));
    let (mut next, mut asked) = (Instant::now(), false);
    while !server.is_ended() {
        if Instant::now() >= next {
            screen.take(viewer.sample());
            next = Instant::now() + SAMPLE_EVERY;
        }
        screen.stopping = server.is_stopping();
        screen.lines = lines.lock().iter().cloned().collect();
        taken.terminal.draw(|frame| screen.draw(frame)).map_err(failed)?;
        if !event::poll(LOOK_EVERY).map_err(failed)? || !ends(&event::read().map_err(failed)?) {
            continue;
        }
        if asked {
            restore();
            std::process::exit(interrupt::INTERRUPTED);
        }
        asked = true;
        server.stop();
    }
    Ok(())
}

/// Whether this is q or Ctrl-C.
fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let asked = key.code == KeyCode::Char('q') || (control && key.code == KeyCode::Char('c'));
    asked && key.kind == KeyEventKind::Press
}
