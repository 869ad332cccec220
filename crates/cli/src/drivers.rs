//! What drivers of GPUs write to standard error while they are opened: C libraries have no other place for it. It is shown
//! where opening failed, and is no news where it did not.

#[cfg(target_os = "linux")]
use std::fs::File;
#[cfg(target_os = "linux")]
use std::io::{self, Read, Seek, Write};
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Keeps standard error for as long as it lives, and shows what came there at its end.
pub(crate) struct DriverTalk {
    #[cfg(target_os = "linux")]
    kept: Option<(OwnedFd, File)>,
}

impl DriverTalk {
    /// From now on what is written to standard error is kept; where that cannot be, it is shown as ever.
    pub(crate) fn keep() -> Self {
        #[cfg(target_os = "linux")]
        return Self { kept: kept().ok() };
        #[cfg(not(target_os = "linux"))]
        Self {}
    }

    /// All went well: what was kept is dropped.
    pub(crate) fn drop_it(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some((stderr, _)) = self.kept.take() {
            put_back(&stderr);
        }
    }
}

impl Drop for DriverTalk {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some((stderr, mut file)) = self.kept.take() {
            put_back(&stderr);
            let mut said = Vec::new();
            if file.rewind().and_then(|()| file.read_to_end(&mut said)).is_ok() {
                let said = String::from_utf8_lossy(&said);
                let _ = io::stderr().write_all(crate::out::visible(&said).as_bytes()); // as in `out::note`
            }
        }
    }
}

/// Standard error as it was, and the file that is in its place.
#[cfg(target_os = "linux")]
fn kept() -> io::Result<(OwnedFd, File)> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    // SAFETY: the name is a C string; the call has no other conditions.
    let made = unsafe { libc::memfd_create(c"drivers".as_ptr(), libc::MFD_CLOEXEC) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(made) };
    if replace_stderr(file.as_raw_fd()) < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stderr, file))
}

#[cfg(target_os = "linux")]
fn put_back(stderr: &OwnedFd) {
    let _ = replace_stderr(stderr.as_raw_fd()); // without standard error there is nowhere to complain
}

#[cfg(target_os = "linux")]
fn replace_stderr(with: std::os::fd::RawFd) -> i32 {
    // SAFETY: both descriptors are open; standard error stays open, whatever it is.
    unsafe { libc::dup2(with, libc::STDERR_FILENO) }
}
