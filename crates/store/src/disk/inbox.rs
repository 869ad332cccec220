//! A client's end of the completion channel.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::{Completion, Disk, Reply};

/// Where one client of a disk receives its completions. It counts what is outstanding, so that waiting for
/// nothing returns at once instead of forever.
#[derive(Debug)]
pub struct Inbox {
    sender: Sender<Completion>,
    receiver: Receiver<Completion>,
    outstanding: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver, outstanding: 0 }
    }
}

impl Inbox {
    /// The reply address of one request that will now be submitted.
    pub fn expect(&mut self) -> Reply {
        self.outstanding += 1;
        let sender = self.sender.clone();
        // A client that has gone away needs no completion; the window ends with the message.
        Reply::new(move |completion| drop(sender.send(completion)))
    }

    /// Reads that were submitted and have not been taken from here.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// A completion that is here already.
    pub fn poll(&mut self, disk: &dyn Disk) -> Option<Completion> {
        if self.outstanding == 0 {
            return None;
        }
        disk.progress(false);
        self.take()
    }

    /// The next completion, waiting for it; `None` when nothing is outstanding.
    pub fn wait(&mut self, disk: &dyn Disk) -> Option<Completion> {
        while self.outstanding > 0 {
            if let Some(completion) = self.take() {
                return Some(completion);
            }
            if !disk.progress(true) {
                // This inbox holds a sender itself, so the channel cannot close while it waits.
                let completion = self.receiver.recv().ok()?;
                self.outstanding -= 1;
                return Some(completion);
            }
        }
        None
    }

    fn take(&mut self) -> Option<Completion> {
        let completion = self.receiver.try_recv().ok()?;
        self.outstanding -= 1;
        Some(completion)
    }
}
