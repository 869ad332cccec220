//! Recorded routing: what a run's routers asked for, in a small file that replays through every policy.
//!
//! The file, all integers little-endian, `v` a LEB128 number of at most 64 bits:
//! ```text
//! "tmtrace" 0   version u32   slot_bytes u64   layers u16   experts u32 for each layer
//! steps v, then for each step:   rows v   wants v, then for each want:   layer v   2 * count + dense v
//!     dense 0: the first expert v, then the distance to each next one v, which is at least 1
//!     dense 1: one bit for each expert of the layer, the lowest first, in whole bytes
//! FNV-1a of everything before u64
//! ```

use std::path::Path;

use files::{Error, Result};

use super::TraceWant;
use crate::key::{ExpertId, LayerId};

const MAGIC: &[u8; 8] = b"tmtrace\0";
const VERSION: u32 = 1;

/// Larger files are not traces that anybody recorded, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// One step of the model: a decoded token, or a chunk of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceStep {
    /// Tokens that went through the layers together.
    pub rows: u32,
    /// The wants of its layers, in their order.
    pub wants: Vec<TraceWant>,
}

/// What the routers of a run asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Bytes of a slot in the recording run; 0 when unknown.
    pub slot_bytes: u64,
    /// Routed experts of each layer; 0 for a layer without.
    pub experts: Vec<u32>,
    /// The steps, in the order of the run.
    pub steps: Vec<TraceStep>,
}

impl Trace {
    /// All wants in the order of the run.
    pub fn wants(&self) -> impl Iterator<Item = &TraceWant> {
        self.steps.iter().flat_map(|step| &step.wants)
    }

    /// Experts of all layers together.
    pub fn total_experts(&self) -> u64 {
        self.experts.iter().map(|n| u64::from(*n)).sum()
    }

    /// Reads a trace file.
    ///
    /// # Errors
    /// `NotFound` or `Io`, `Corrupt` for what is not a whole trace, `Unsupported` for a later version; all name the
    /// file.
    pub fn read(path: &Path) -> Result<Self> {
        let named = |e| Error::io(path.display(), e);
        let bytes = std::fs::metadata(path).map_err(named)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(Error::corrupt(format!("{}: {bytes} bytes are no trace", path.display())));
        }
        Self::decode(&std::fs::read(path).map_err(named)?).map_err(|e| e.context(path.display()))
    }

    /// The bytes of a trace file. Experts of a want are kept as a set, in ascending order.
    ///
    /// # Errors
    /// `InvalidRequest` for experts that the trace's own layers do not have.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let layers = u16::try_from(self.experts.len())
            .map_err(|_| Error::invalid(format!("a trace of {} layers", self.experts.len())))?;
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(self.slot_bytes.to_le_bytes());
        out.extend(layers.to_le_bytes());
        self.experts.iter().for_each(|n| out.extend(n.to_le_bytes()));
        put(&mut out, self.steps.len() as u64);
        for step in &self.steps {
            put(&mut out, u64::from(step.rows));
            put(&mut out, step.wants.len() as u64);
            for want in &step.wants {
                encode_want(&mut out, &self.experts, want)?;
            }
        }
        out.extend(fnv1a(&out).to_le_bytes());
        Ok(out)
    }

    /// The trace in the bytes of a file.
    ///
    /// # Errors
    /// `Corrupt` for anything that [`Self::encode`] does not write, `Unsupported` for a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader { rest: bytes };
        if from.take(8)? != MAGIC {
            return Err(Error::corrupt("not a routing trace"));
        }
        let version = u32::from_le_bytes(from.array()?);
        if version != VERSION {
            return Err(Error::unsupported(format!("a routing trace of version {version}, not {VERSION}")));
        }
        let Some((body, sum)) = bytes.split_last_chunk::<8>() else { return Err(ends_early()) };
        if fnv1a(body) != u64::from_le_bytes(*sum) {
            return Err(Error::corrupt("the routing trace is damaged: its checksum does not match"));
        }
        from.rest = body.get(12..).ok_or_else(ends_early)?;
        let slot_bytes = u64::from_le_bytes(from.array()?);
        let layers = u16::from_le_bytes(from.array()?);
        let mut experts = Vec::new();
        for layer in 0..layers {
            let count = u32::from_le_bytes(from.array()?);
            if count > 1 << 16 {
                return Err(Error::corrupt(format!("layer {layer} of the trace has {count} experts")));
            }
            experts.push(count);
        }
        // No count below is trusted with memory: each entry takes at least a byte of the file.
        let mut steps = Vec::new();
        for _ in 0..from.number()? {
            let rows = u32::try_from(from.number()?)
                .map_err(|_| Error::corrupt("a step of the trace has too many rows"))?;
            let mut wants = Vec::new();
            for _ in 0..from.number()? {
                wants.push(decode_want(&mut from, &experts)?);
            }
            steps.push(TraceStep { rows, wants });
        }
        if !from.rest.is_empty() {
            return Err(Error::corrupt(format!("{} bytes follow the last step", from.rest.len())));
        }
        Ok(Self { slot_bytes, experts, steps })
    }
}

fn encode_want(out: &mut Vec<u8>, experts: &[u32], want: &TraceWant) -> Result<()> {
    let mut ids: Vec<u16> = want.experts.iter().map(|e| e.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let of_layer = experts.get(usize::from(want.layer.0)).copied().unwrap_or(0);
    if let Some(id) = ids.last().filter(|id| u32::from(**id) >= of_layer) {
        let layer = want.layer.0;
        return Err(Error::invalid(format!("layer {layer} of the trace has no expert {id}")));
    }
    let map_bytes = of_layer.div_ceil(8) as usize;
    let dense = ids.len() > map_bytes;
    put(out, u64::from(want.layer.0));
    put(out, 2 * ids.len() as u64 + u64::from(dense));
    if dense {
        let start = out.len();
        out.resize(start + map_bytes, 0);
        ids.iter().for_each(|id| out[start + usize::from(id / 8)] |= 1 << (id % 8));
    } else {
        let mut before = 0;
        for id in ids {
            put(out, u64::from(id - before));
            before = id;
        }
    }
    Ok(())
}

fn decode_want(from: &mut Reader<'_>, experts: &[u32]) -> Result<TraceWant> {
    let layer = from.number()?;
    let of_layer = usize::try_from(layer).ok().and_then(|l| experts.get(l)).copied();
    let Some(of_layer) = of_layer else {
        return Err(Error::corrupt(format!("the trace has no layer {layer}")));
    };
    let (count, dense) = (from.number()?, |n: u64| n % 2 == 1);
    let (count, dense) = (count / 2, dense(count));
    let wrong =
        || Error::corrupt(format!("a want of layer {layer} does not name {count} of {of_layer} experts"));
    if count > u64::from(of_layer) {
        return Err(wrong());
    }
    let mut ids = Vec::with_capacity(count as usize);
    if dense {
        let map = from.take(of_layer.div_ceil(8) as usize)?;
        let set = |id: &u32| map[*id as usize / 8] >> (id % 8) & 1 == 1;
        ids.extend((0..of_layer).filter(set).map(|id| ExpertId(id as u16)));
        let bits: u64 = map.iter().map(|byte| u64::from(byte.count_ones())).sum();
        if bits != count || ids.len() as u64 != count {
            return Err(wrong());
        }
    } else {
        let mut at = 0u64;
        for i in 0..count {
            let step = from.number()?;
            at = at.checked_add(step).filter(|at| *at < u64::from(of_layer)).ok_or_else(wrong)?;
            if i > 0 && step == 0 {
                return Err(wrong());
            }
            ids.push(ExpertId(at as u16));
        }
    }
    Ok(TraceWant { layer: LayerId(layer as u16), experts: ids })
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or_else(ends_early)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(ends_early)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::corrupt("a number in the trace exceeds 64 bits"))
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn ends_early() -> Error {
    Error::corrupt("the routing trace ends early")
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(seed: u64) -> Trace {
        let mut random = seed;
        let mut below = move |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let experts = vec![0, 16, 512, 1, 65536];
        let mut steps = Vec::new();
        for _ in 0..below(5) {
            let mut wants = Vec::new();
            for _ in 0..below(6) {
                let layer = 1 + below(4) as u16;
                let of_layer = u64::from(experts[usize::from(layer)]);
                let count = below(of_layer.min(300) + 1);
                let mut ids: Vec<_> = (0..count).map(|_| ExpertId(below(of_layer) as u16)).collect();
                ids.sort_unstable();
                ids.dedup();
                wants.push(TraceWant { layer: LayerId(layer), experts: ids });
            }
            steps.push(TraceStep { rows: below(3000) as u32, wants });
        }
        Trace { slot_bytes: below(1 << 30), experts, steps }
    }

    /// As `bytes`, with the checksum that fits them.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len() - 8;
        let sum = fnv1a(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seed: u64) {
            let trace = trace(seed);
            prop_assert_eq!(&Trace::decode(&trace.encode().unwrap()).unwrap(), &trace);
        }

        #[test]
        fn damage_is_found_and_forged_sums_are_survived(seed: u64, at: usize, flip in 1u8.., cut: usize) {
            let good = trace(seed).encode().unwrap();
            let mut bad = good.clone();
            let at = at % bad.len();
            bad[at] ^= flip;
            let kind = Trace::decode(&bad).unwrap_err().kind();
            prop_assert!(matches!(kind, files::ErrorKind::Corrupt | files::ErrorKind::Unsupported));
            prop_assert!(Trace::decode(&good[..cut % good.len()]).is_err());
            if let Ok(other) = Trace::decode(&resealed(bad)) {
                // Whatever a stranger's file says, what comes out of it is a trace.
                prop_assert_eq!(&Trace::decode(&other.encode().unwrap()).unwrap(), &other);
            }
        }

        #[test]
        fn noise_is_no_trace(noise: Vec<u8>) {
            prop_assert!(Trace::decode(&noise).is_err());
            let mut headed = MAGIC.to_vec();
            headed.extend(VERSION.to_le_bytes());
            headed.extend(noise);
            headed.extend([0; 8]);
            let _ = Trace::decode(&resealed(headed));
        }
    }

    #[test]
    fn a_billion_steps_that_are_not_there_cost_no_memory() {
        let mut bytes = Trace::default().encode().unwrap();
        let end = bytes.len() - 8;
        bytes.splice(end - 1..end, [0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(Trace::decode(&resealed(bytes)).unwrap_err().message(), "the routing trace ends early");
    }

    #[test]
    fn later_versions_and_experts_that_do_not_exist_are_named() {
        let mut bytes = Trace::default().encode().unwrap();
        bytes[8] = 9;
        assert_eq!(Trace::decode(&bytes).unwrap_err().kind(), files::ErrorKind::Unsupported);
        let want = TraceWant { layer: LayerId(0), experts: vec![ExpertId(4)] };
        let steps = vec![TraceStep { rows: 1, wants: vec![want] }];
        let error = Trace { experts: vec![4], steps, ..Trace::default() }.encode().unwrap_err();
        assert_eq!(error.message(), "layer 0 of the trace has no expert 4");
    }

    #[test]
    fn a_decoded_token_takes_about_a_byte_an_expert() {
        let wants = (0..40).map(|l| TraceWant {
            layer: LayerId(l),
            experts: (0..8).map(|e| ExpertId(e * 31 + l)).collect(),
        });
        let steps = vec![TraceStep { rows: 1, wants: wants.collect() }; 100];
        let bytes = Trace { slot_bytes: 0, experts: vec![512; 40], steps }.encode().unwrap().len();
        assert!(bytes < 100 * 40 * 11, "{bytes}");
    }

    #[test]
    fn files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.trace");
        let trace = trace(3);
        std::fs::write(&path, trace.encode().unwrap()).unwrap();
        assert_eq!(Trace::read(&path).unwrap(), trace);
        std::fs::write(&path, b"hello, this is no trace").unwrap();
        assert!(Trace::read(&path).unwrap_err().message().contains("run.trace"));
        assert_eq!(Trace::read(&dir.path().join("none")).unwrap_err().kind(), files::ErrorKind::NotFound);
    }
}
