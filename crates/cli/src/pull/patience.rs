//! When something is tried again, and how long to wait before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Error, ErrorKind};

use crate::out;

/// How often a request is tried, and the time between.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// Failures in a row before giving up, the first one counted.
    pub(super) tries: u32,
    /// Before the second try; twice as long before each that follows.
    pub(super) first: Duration,
    /// The longest of them.
    pub(super) most: Duration,
    /// The longest that a server may ask for.
    pub(super) asked_most: Duration,
}

impl Patience {
    /// For the transfer of a file: about a minute of failures.
    pub(super) const LONG: Self = Self {
        tries: 11,
        first: Duration::from_millis(300),
        most: Duration::from_secs(10),
        asked_most: Duration::from_secs(120),
    };

    /// For a question that a user waits for.
    pub(super) fn short(self) -> Self {
        Self { tries: self.tries.min(4), ..self }
    }

    /// Runs `attempt` until it succeeds, cannot succeed, or has failed too often in a row.
    pub(super) fn keep_trying<T>(
        self,
        stop: &AtomicBool,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, Error> {
        let mut failures = Failures::new(self);
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(trouble) => failures.wait(trouble, stop)?,
            }
        }
    }
}

/// Why a try failed.
pub(super) struct Trouble {
    /// What the user is told if it was the last one.
    pub(super) error: Error,
    /// Whether there is sense in another.
    pub(super) again: Again,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It would fail again.
    Never,
    /// After a growing while.
    Soon,
    /// After what the server asked for.
    After(Duration),
}

impl Again {
    /// After what the server asked for, if it did.
    pub(super) fn after(wait: Option<Duration>) -> Self {
        wait.map_or(Self::Soon, Self::After)
    }
}

impl Trouble {
    /// It would fail again.
    pub(super) fn never(error: Error) -> Self {
        Self { error, again: Again::Never }
    }

    /// Something about the network.
    pub(super) fn soon(message: String) -> Self {
        Self { error: Error::new(ErrorKind::Io, message), again: Again::Soon }
    }
}

/// Failures in a row.
pub(super) struct Failures {
    patience: Patience,
    count: u32,
}

impl Failures {
    /// None yet.
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, count: 0 }
    }

    /// Something was achieved: the next failure is the first.
    pub(super) fn forget(&mut self) {
        self.count = 0;
    }

    /// Counts one and waits; an error when there is no sense in another try, or `stop` is set.
    pub(super) fn wait(&mut self, trouble: Trouble, stop: &AtomicBool) -> Result<(), Error> {
        let Patience { tries, first, most, asked_most } = self.patience;
        self.count += 1;
        let growing = first.saturating_mul(1 << (self.count - 1).min(16)).min(most);
        let wait = match trouble.again {
            Again::Never => return Err(trouble.error),
            Again::After(asked) if asked > asked_most => return Err(trouble.error),
            Again::After(asked) => asked.max(growing),
            Again::Soon => growing,
        };
        if self.count >= tries {
            return Err(trouble.error);
        }
        if wait > most {
            out::note(format_args!("note: the hub asks to wait {} s", wait.as_secs()));
        }
        const SLICE: Duration = Duration::from_millis(100);
        let mut left = wait;
        while !left.is_zero() && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(left.min(SLICE));
            left = left.saturating_sub(SLICE);
        }
        if stop.load(Ordering::Relaxed) { Err(stopped()) } else { Ok(()) }
    }
}

/// Another file's error ends this one's transfer.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped")
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Patience = Patience {
        tries: 3,
        first: Duration::from_millis(1),
        most: Duration::from_millis(2),
        asked_most: Duration::from_millis(5),
    };

    fn tried(again: Again) -> (u32, String) {
        let mut count = 0;
        let result: Result<(), Error> = QUICK.keep_trying(&AtomicBool::new(false), || {
            count += 1;
            Err(Trouble { error: Error::new(ErrorKind::Io, format!("failure {count}")), again })
        });
        (count, result.expect_err("never succeeds").message().to_owned())
    }

    #[test]
    fn tries_are_bounded_and_the_last_failure_is_told() {
        assert_eq!(tried(Again::Soon), (3, "failure 3".into()));
        assert_eq!(tried(Again::After(Duration::from_millis(4))), (3, "failure 3".into()));
        assert_eq!(tried(Again::After(Duration::from_secs(3600))), (1, "failure 1".into()));
        assert_eq!(tried(Again::Never), (1, "failure 1".into()));
    }

    #[test]
    fn progress_makes_the_next_failure_the_first() {
        let mut failures = Failures::new(QUICK);
        let go = AtomicBool::new(false);
        for _ in 0..10 {
            assert!(failures.wait(Trouble::soon("x".into()), &go).is_ok());
            failures.forget();
        }
        assert!(failures.wait(Trouble::soon("x".into()), &go).is_ok());
        assert!(failures.wait(Trouble::soon("x".into()), &go).is_ok());
        assert!(failures.wait(Trouble::soon("x".into()), &go).is_err());
    }

    #[test]
    fn nobody_waits_once_another_file_has_failed() {
        let mut failures = Failures::new(Patience { first: Duration::from_secs(3600), ..QUICK });
        let error = failures.wait(Trouble::soon("x".into()), &AtomicBool::new(true)).expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
