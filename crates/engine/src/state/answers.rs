//! The file in which answers outlive the process.
//!
//! Layout, little-endian: magic `TMANSWR1`, the model's fingerprint (u64), then one record after another: its bytes (u32),
//! the turn's key (u128), the number of calls (u32), their keys (u128 each), the tokens (u32 each), and the XXH3 hash (u64) of
//! all of that. What follows a record that is not whole is nothing: a killed process leaves half of one.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use files::{Error, Result};
use twox_hash::XxHash3_64;

use crate::answers::AnswerRecord;

const MAGIC: &[u8; 8] = b"TMANSWR1";
const HEAD_BYTES: usize = 16;

/// Records that a later one has pushed out of memory are left in the file until it is so large.
const BYTES_MAX: u64 = 32 << 20;

/// What a record has besides its keys and tokens: its length and its hash.
const RECORD_BYTES: usize = 4 + 16 + 4 + 8;

/// A file of answers, which is made with the first of them.
pub(super) struct AnswerFile {
    path: PathBuf,
    file: Option<File>,
    fingerprint: u64,
    /// As far as it is whole.
    bytes: u64,
}

impl AnswerFile {
    /// Tells `sink` what is whole in it, the oldest first. A file that is larger than this writes any is none of its own.
    ///
    /// # Errors
    /// `Io` when it is there and cannot be read.
    pub(super) fn open(path: PathBuf, fingerprint: u64, sink: &mut dyn FnMut(AnswerRecord)) -> Result<Self> {
        let bytes = match File::open(&path) {
            Ok(file) => records(&file, &head(fingerprint), sink).map_err(|e| Error::io(path.display(), e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            Err(e) => return Err(Error::io(path.display(), e)),
        };
        Ok(Self { path, file: None, fingerprint, bytes })
    }

    /// What answers take in the file.
    pub(super) fn bytes_of(answers: &[AnswerRecord]) -> u64 {
        let of = |answer: &AnswerRecord| RECORD_BYTES + 16 * answer.calls.len() + 4 * answer.tokens.len();
        answers.iter().map(of).sum::<usize>() as u64
    }

    /// Adds answers. `all` are those to keep when the file has become too large.
    ///
    /// # Errors
    /// `Io` when the disk fails; what was half written counts for nothing.
    pub(super) fn add(&mut self, new: &[AnswerRecord], all: &dyn Fn() -> Vec<AnswerRecord>) -> Result<()> {
        let mut bytes = Vec::new();
        new.iter().for_each(|answer| write_record(answer, &mut bytes));
        if self.bytes + bytes.len() as u64 > BYTES_MAX {
            return self.replace(&all());
        }
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let io = |e| Error::io(self.path.display(), e);
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = appending(&self.path).map_err(io)?;
                file.set_len(self.bytes).map_err(io)?; // what is not whole
                file
            }
        };
        let head = Some(head(self.fingerprint)).filter(|_| self.bytes == 0);
        let all = [head.as_ref().map_or([].as_slice(), |head| head), bytes].concat();
        file.write_all(&all).map_err(io)?;
        self.bytes += all.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    fn replace(&mut self, answers: &[AnswerRecord]) -> Result<()> {
        let mut bytes = head(self.fingerprint).to_vec();
        answers.iter().for_each(|answer| write_record(answer, &mut bytes));
        let aside = self.path.with_extension("partial");
        let io = |e| Error::io(aside.display(), e);
        let mut file = appending(&aside).map_err(io)?;
        file.set_len(0).and_then(|()| file.write_all(&bytes)).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&aside, &self.path).map_err(io)?;
        (self.file, self.bytes) = (Some(file), bytes.len() as u64);
        Ok(())
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is in a model's folder.
    pub(super) fn path_in(folder: &Path) -> PathBuf {
        folder.join("answers")
    }
}

fn appending(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn head(fingerprint: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..].copy_from_slice(&fingerprint.to_le_bytes());
    head
}

fn write_record(answer: &AnswerRecord, out: &mut Vec<u8>) {
    let start = out.len();
    let bytes = AnswerFile::bytes_of(std::slice::from_ref(answer)) - 8; // without the hash
    out.extend_from_slice(&(bytes as u32).to_le_bytes());
    out.extend_from_slice(&answer.turn.to_le_bytes());
    out.extend_from_slice(&(answer.calls.len() as u32).to_le_bytes());
    answer.calls.iter().for_each(|call| out.extend_from_slice(&call.to_le_bytes()));
    answer.tokens.iter().for_each(|token| out.extend_from_slice(&token.to_le_bytes()));
    let hash = XxHash3_64::oneshot(&out[start..]);
    out.extend_from_slice(&hash.to_le_bytes());
}

/// Tells `sink` the whole records after `head`; how many bytes of the file are whole.
fn records(file: &File, head: &[u8; HEAD_BYTES], sink: &mut dyn FnMut(AnswerRecord)) -> std::io::Result<u64> {
    let mut left = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let mut own = [0; HEAD_BYTES];
    if !(HEAD_BYTES as u64..=BYTES_MAX).contains(&left) {
        return Ok(0);
    }
    file.read_exact(&mut own)?;
    if own != *head {
        return Ok(0);
    }
    left -= HEAD_BYTES as u64;
    let (mut whole, mut bytes) = (HEAD_BYTES as u64, Vec::new());
    while left >= RECORD_BYTES as u64 {
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        let all = u64::from(u32::from_le_bytes(length)) + 8;
        if !(RECORD_BYTES as u64..=left).contains(&all) {
            break;
        }
        bytes.clear();
        bytes.extend_from_slice(&length);
        bytes.resize(all as usize, 0);
        file.read_exact(&mut bytes[4..])?;
        let Some(answer) = record(&bytes) else { break };
        sink(answer);
        (left, whole) = (left - all, whole + all);
    }
    Ok(whole)
}

/// A record, with its hash.
fn record(bytes: &[u8]) -> Option<AnswerRecord> {
    let (own, hash) = bytes.split_last_chunk()?;
    if XxHash3_64::oneshot(own) != u64::from_le_bytes(*hash) {
        return None;
    }
    let (turn, own) = own.get(4..)?.split_first_chunk()?;
    let (calls, own) = own.split_first_chunk()?;
    let (calls, tokens) = own.split_at_checked(16 * u32::from_le_bytes(*calls) as usize)?;
    let calls = calls.as_chunks().0.iter().map(|call| u128::from_le_bytes(*call)).collect();
    let (tokens, []) = tokens.as_chunks() else { return None };
    let tokens = tokens.iter().map(|token| u32::from_le_bytes(*token)).collect();
    Some(AnswerRecord { turn: u128::from_le_bytes(*turn), calls, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(n: u32) -> AnswerRecord {
        AnswerRecord { turn: n.into(), calls: vec![7; n as usize % 3], tokens: (0..n).collect() }
    }

    #[test]
    fn answers_come_back_until_the_first_that_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = AnswerFile::path_in(folder.path());
        let all: Vec<AnswerRecord> = (0..9).map(answer).collect();
        let open = |fingerprint| {
            let mut all = Vec::new();
            let file = AnswerFile::open(path.clone(), fingerprint, &mut |answer| all.push(answer)).unwrap();
            (file, all)
        };
        let (mut file, none) = open(1);
        assert_eq!(none, []);
        file.add(&all[..4], &|| panic!("small")).unwrap();
        file.add(&all[4..], &|| panic!("small")).unwrap();
        drop(file);
        let (file, back) = open(1);
        assert_eq!(back, all);
        let whole = fs::read(&path).unwrap();
        assert_eq!(file.bytes(), whole.len() as u64);
        // Each cut, and each damaged byte, costs what follows and nothing before; the file is then as if that never was.
        for at in (0..whole.len()).step_by(7) {
            fs::write(&path, &whole[..at]).unwrap();
            let (mut file, cut) = open(1);
            assert_eq!(cut, all[..cut.len()]);
            file.add(&[answer(20)], &|| panic!("small")).unwrap();
            let (_, more) = open(1);
            assert_eq!(more, [cut.as_slice(), &[answer(20)]].concat(), "cut at {at}");
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            let (_, back) = open(1);
            assert!(back.len() < all.len() && back == all[..back.len()], "damaged at {at}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(open(2).1, [], "of another model");
    }

    #[test]
    fn a_file_that_is_too_large_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = AnswerFile::path_in(folder.path());
        let mut file = AnswerFile::open(path.clone(), 1, &mut |_| ()).unwrap();
        file.bytes = BYTES_MAX;
        file.add(&[answer(3)], &|| vec![answer(2), answer(3)]).unwrap();
        file.add(&[answer(4)], &|| panic!("small")).unwrap();
        drop(file);
        let mut all = Vec::new();
        AnswerFile::open(path.clone(), 1, &mut |answer| all.push(answer)).unwrap();
        assert_eq!(all, [answer(2), answer(3), answer(4)]);
        // One that is larger than any that is written is nobody's, and is not read.
        File::options().append(true).open(&path).unwrap().set_len(BYTES_MAX + 1).unwrap();
        let file = AnswerFile::open(path, 1, &mut |_| panic!("it is not read")).unwrap();
        assert_eq!(file.bytes(), 0);
    }
}
