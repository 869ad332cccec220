//! A small model's worth of experts in two files, and the disks to read them from.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::path::PathBuf;
use std::sync::Arc;

use tidemill_store::disk::{Disk, PreadDisk, PreadOptions, SimDisk, SimOptions};
#[cfg(target_os = "linux")]
use tidemill_store::disk::{UringDisk, UringOptions};
use tidemill_store::{
    ExpertId, ExpertKey, ExpertLayout, ExpertStore, LayerId, Lease, Range, SlabMemory, StoreOptions,
    slot_bytes,
};

/// A sequence of well-mixed numbers (splitmix64), so that a test is a function of its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Files full of random bytes, and experts in them at unaligned offsets and sizes. The last expert of each layer
/// ends at the very end of its file.
pub struct Model {
    pub files: Vec<Vec<u8>>,
    pub layouts: Vec<Vec<ExpertLayout>>,
}

impl Model {
    /// `layers` layers of `experts` experts of `parts` parts of about `part_bytes`; one file a layer.
    pub fn new(seed: u64, layers: usize, experts: usize, parts: usize, part_bytes: usize) -> Self {
        let mut random = Random(seed);
        let (mut files, mut layouts) = (Vec::new(), Vec::new());
        for layer in 0..layers {
            let sizes: Vec<_> = (0..parts).map(|_| 1 + random.below(part_bytes)).collect();
            let mut at = random.below(9000);
            let mut experts_of_layer = vec![ExpertLayout { parts: Vec::new() }; experts];
            for size in sizes {
                for expert in &mut experts_of_layer {
                    let range = Range { file: layer as u32, offset: at as u64, bytes: size as u64 };
                    expert.parts.push(range);
                    at += size;
                }
            }
            let mut content = vec![0; at];
            content.chunks_mut(8).for_each(|c| c.copy_from_slice(&random.next().to_le_bytes()[..c.len()]));
            files.push(content);
            layouts.push(experts_of_layer);
        }
        Self { files, layouts }
    }

    pub fn slot_bytes(&self) -> usize {
        slot_bytes(self.layouts.iter().flatten()).unwrap()
    }

    /// A store with `slots` slots, spread over slabs of at most 3 slots with a useless rest.
    pub fn store(&self, disk: Arc<dyn Disk>, slots: usize) -> ExpertStore {
        let slot_bytes = self.slot_bytes();
        let (mut slabs, mut rest) = (Vec::new(), slots);
        while rest > 0 {
            let here = rest.min(3);
            slabs.push(SlabMemory::anonymous(here * slot_bytes + slot_bytes / 2).unwrap());
            rest -= here;
        }
        let options = StoreOptions { slot_bytes, policy: None, give_back: None };
        let store = ExpertStore::new(disk, self.layouts.clone(), slabs, options).unwrap();
        assert_eq!(store.slots(), slots);
        store
    }

    pub fn sim(&self, options: SimOptions) -> Arc<SimDisk> {
        Arc::new(SimDisk::new(self.files.clone(), options))
    }

    /// The same files on a real file system.
    pub fn write(&self) -> (tempfile::TempDir, Vec<PathBuf>) {
        // Next to the build: /tmp is memory on many machines, where direct reads prove nothing.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let write = |(i, content): (usize, &Vec<u8>)| {
            let path = dir.path().join(format!("layer-{i}.bin"));
            std::fs::write(&path, content).unwrap();
            path
        };
        let paths = self.files.iter().enumerate().map(write).collect();
        (dir, paths)
    }

    pub fn pread(&self, direct: bool) -> (tempfile::TempDir, Arc<PreadDisk>) {
        let (dir, paths) = self.write();
        let options = PreadOptions { workers: 4, direct, piece_bytes: 16 << 10 };
        (dir, Arc::new(PreadDisk::open(&paths, &options).unwrap()))
    }

    /// The same files through io_uring; `None` says why the test is skipped.
    #[cfg(target_os = "linux")]
    pub fn uring(&self, direct: bool) -> Option<(tempfile::TempDir, Arc<dyn Disk>)> {
        let (dir, paths) = self.write();
        let options = UringOptions { depth: 3, direct, piece_bytes: 8 << 10 };
        uring(&paths, &options).map(|disk| (dir, disk))
    }

    /// Whether a lease shows the bytes of its expert.
    pub fn check(&self, lease: &Lease) {
        let layout = &self.layouts[lease.key.layer.0 as usize][lease.expert.0 as usize];
        assert_eq!(lease.parts.len(), layout.parts.len());
        let (start, span) = lease.span();
        assert_eq!((start % 4, span.len() % 4), (0, 0), "whole words");
        for (i, part) in layout.parts.iter().enumerate() {
            let file = &self.files[part.file as usize];
            let want = &file[part.offset as usize..][..part.bytes as usize];
            assert_eq!(lease.parts[i].bytes, want.len());
            assert_eq!(lease.parts[i].offset as u64 % 4096, part.offset % 4096);
            assert!(lease.bytes(i) == want, "{}: part {i} differs from the file", lease.key);
            let at = lease.parts[i].offset - lease.slot_offset() - start;
            assert!(span[at..].starts_with(want), "{}: part {i} is not where the span has it", lease.key);
        }
        assert!(lease.bytes(layout.parts.len()).is_empty());
    }
}

/// An io_uring engine, where the system lets tests have one.
#[cfg(target_os = "linux")]
pub fn uring(paths: &[PathBuf], options: &UringOptions) -> Option<Arc<dyn Disk>> {
    match UringDisk::open(paths, options) {
        Ok(disk) => Some(Arc::new(disk)),
        Err(error) => {
            assert_eq!(error.kind(), files::ErrorKind::Unsupported, "{error}");
            // Hosts of containers forbid io_uring as often as not, CI included: the other engines stand in.
            println!("SKIP {error}");
            None
        }
    }
}

pub fn key(layer: u16, expert: u16) -> ExpertKey {
    ExpertKey { layer: LayerId(layer), expert: ExpertId(expert) }
}

pub fn mask(ids: impl IntoIterator<Item = u16>) -> tidemill_store::ExpertMask {
    ids.into_iter().map(ExpertId).collect()
}
