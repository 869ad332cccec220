//! The GPU's memory: slots that the host fills, the order of writes and ops, and what is refused.

mod limits;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common;
use files::{ErrorKind, Format, ScaleType};
use tidemill_kernels::buffer::{Buffer, Tensor, View, Weight};
use tidemill_kernels::gpu::{AdapterKind, Gpu, GpuOptions};
use tidemill_kernels::ops::{Backend, Precision};
use tidemill_kernels::reference::Reference;

/// A GPU that has memory of its own, or that reads the host's where the driver can.
fn gpu_of(share: bool) -> Option<Gpu> {
    if !common::has_gpu() {
        return None;
    }
    let options = GpuOptions { precision: Precision::Exact, share: Some(share), ..GpuOptions::default() };
    Some(Gpu::open(&options).unwrap())
}

fn gpu() -> Option<Gpu> {
    gpu_of(false)
}

/// A GPU that reads the host's memory.
fn sharing() -> Option<Gpu> {
    let gpu = gpu_of(true)?;
    if !gpu.info().unified_memory {
        // What CI runs on can.
        assert!(gpu.adapter().kind != AdapterKind::Software, "{:?}", gpu.adapter());
        println!("SKIP gpu: {:?} does not share memory", gpu.adapter());
        return None;
    }
    Some(gpu)
}

/// Says when it is dropped.
struct Lease(Arc<AtomicBool>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

fn tensor(b: &dyn Backend, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    let mut block = b.alloc(rows * cols * 4).unwrap();
    b.write(&mut block, 0, bytemuck::cast_slice(values)).unwrap();
    Tensor::new(block, rows, cols).unwrap()
}

fn zeros(b: &dyn Backend, rows: usize, cols: usize) -> Tensor {
    Tensor::new(b.alloc(rows * cols * 4).unwrap(), rows, cols).unwrap()
}

fn values(b: &dyn Backend, t: &Tensor) -> Vec<f32> {
    let mut out = vec![0f32; t.len()];
    b.read(t.block(), 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

const ROWS: usize = 24;
const COLS: usize = 128;
const FORMAT: Format = Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 };

/// What a drive does: writes the parts of a weight into a slot at page-aligned `slot`, `shift` bytes in, one after
/// the other as they lie in a file, and publishes the slot.
fn fill(b: &dyn Backend, slab: &Buffer, slot: usize, shift: usize, values: &[f32]) -> Weight {
    let mut parts = vec![Vec::new(); 3];
    for row in values.chunks_exact(COLS) {
        for (part, bytes) in parts.iter_mut().zip(files::quant::encode(FORMAT, row).unwrap()) {
            part.extend(bytes);
        }
    }
    let mut at = slot + shift;
    let mut views = Vec::new();
    for part in parts {
        let host = slab.host().unwrap();
        assert!(at + part.len() <= slot + 4096);
        // SAFETY: the range lies in the slab (a slot is a page), and nobody else uses this slot now.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), host.as_ptr().add(at), part.len()) };
        // SAFETY: the slot is written again only after the weight is gone.
        views.push(unsafe { View::new(slab, at..at + part.len()) }.unwrap());
        at += part.len();
    }
    b.publish(slab, slot..slot + 4096).unwrap();
    Weight::new(FORMAT, ROWS, COLS, views).unwrap()
}

fn product(b: &dyn Backend, weight: &Weight, x: &[f32]) -> Vec<f32> {
    let mut out = tensor(b, 3, ROWS, &[0.0; 3 * ROWS]);
    b.linear(&tensor(b, 3, COLS, x), weight, None, &mut out).unwrap();
    values(b, &out)
}

fn close(got: &[f32], want: &[f32]) {
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-5, "{g}, not {w}");
    }
}

#[test]
fn slots_at_any_byte() {
    for gpu in [gpu(), sharing()].into_iter().flatten() {
        slots_at_any_byte_of(&gpu);
    }
}

fn slots_at_any_byte_of(gpu: &Gpu) {
    let reference = Reference::default();
    let slab = gpu.alloc_shared(3 * 4096).unwrap();
    let host = reference.alloc_shared(3 * 4096).unwrap();
    assert_eq!(slab.host().unwrap().as_ptr().align_offset(4096), 0, "a slab is page-aligned");
    let x = wave(3 * COLS, 0.37);
    for (slot, shift) in [(0, 0), (1, 2), (2, 8), (1, 1), (0, 3), (2, 1001)] {
        let w = wave(ROWS * COLS, 0.011 * (slot + shift + 1) as f32);
        let got = product(gpu, &fill(gpu, &slab, slot * 4096, shift, &w), &x);
        close(&got, &product(&reference, &fill(&reference, &host, slot * 4096, shift, &w), &x));
    }
}

/// A slot that is given back may be filled again at once: ops enqueued before still see what it held.
#[test]
fn a_released_slot_is_read_before_it_changes() {
    let Some(gpu) = gpu() else { return };
    let slab = gpu.alloc_shared(4096).unwrap();
    let x = wave(3 * COLS, 0.21);
    let on_device = tensor(&gpu, 3, COLS, &x);
    let mut outs = Vec::new();
    let rounds = [0.013, 0.017, 0.019];
    for step in rounds {
        let weight = fill(&gpu, &slab, 0, 2, &wave(ROWS * COLS, step));
        let mut out = tensor(&gpu, 3, ROWS, &[0.0; 3 * ROWS]);
        gpu.linear(&on_device, &weight, None, &mut out).unwrap();
        outs.push(out);
        let lease = Arc::new(AtomicBool::new(false));
        gpu.release(Box::new((weight, Lease(lease.clone()))));
        assert!(!lease.load(Ordering::SeqCst), "a copy made now would overtake the op that is only recorded");
        gpu.submit().unwrap();
        assert!(
            lease.load(Ordering::SeqCst),
            "the copy is the device's own: the slot is free before the op ran"
        );
        gpu.release(Box::new(Lease(lease.clone()))); // nothing is recorded that could read it
    }
    let reference = Reference::default();
    let host = reference.alloc_shared(4096).unwrap();
    for (out, step) in outs.iter().zip(rounds) {
        let weight = fill(&reference, &host, 0, 2, &wave(ROWS * COLS, step));
        close(&values(&gpu, out), &product(&reference, &weight, &x));
    }
}

/// Where the device reads the host's own pages, a slot is lent until the op ran: whoever needs it asks for it.
#[test]
fn a_lent_slot_comes_back_when_the_device_is_done() {
    let Some(gpu) = sharing() else { return };
    let slab = gpu.alloc_shared(4 * 4096).unwrap();
    let x = wave(3 * COLS, 0.21);
    let on_device = tensor(&gpu, 3, COLS, &x);
    // What keeps the device busy while the host goes on.
    const LONG: usize = 1024;
    let (many, mut sums) = (tensor(&gpu, 128, LONG, &vec![0.1; 128 * LONG]), zeros(&gpu, 128, LONG));
    let table = gpu.alloc_shared(4 * LONG * LONG).unwrap();
    // SAFETY: nobody writes it.
    let table = unsafe { View::new(&table, 0..4 * LONG * LONG) }.unwrap();
    let table = Weight::new(Format::F32, LONG, LONG, vec![table]).unwrap();
    let before = gpu.counts().unwrap();
    let mut outs = Vec::new();
    let rounds: Vec<f32> = (0..40).map(|i| 0.013 + 0.001 * i as f32).collect();
    let mut lent: VecDeque<Arc<AtomicBool>> = VecDeque::new();
    for (round, &step) in rounds.iter().enumerate() {
        while lent.len() == 4 {
            gpu.reclaim().unwrap();
            let back = lent.iter().filter(|lease| lease.load(Ordering::SeqCst)).count();
            assert!(back > 0, "something comes back each time");
            // In the order in which they were lent.
            assert!(lent.drain(..back).all(|lease| lease.load(Ordering::SeqCst)));
        }
        let weight = fill(&gpu, &slab, round % 4 * 4096, 2, &wave(ROWS * COLS, step));
        let mut out = zeros(&gpu, 3, ROWS);
        gpu.linear(&many, &table, None, &mut sums).unwrap();
        gpu.linear(&on_device, &weight, None, &mut out).unwrap();
        outs.push(out);
        let lease = Arc::new(AtomicBool::new(false));
        gpu.release(Box::new((weight, Lease(lease.clone()))));
        assert!(!lease.load(Ordering::SeqCst), "the op did not even begin");
        lent.push_back(lease);
        if round % 3 == 2 {
            gpu.submit().unwrap();
        }
    }
    let reference = Reference::default();
    let host = reference.alloc_shared(4096).unwrap();
    for (out, &step) in outs.iter().zip(&rounds) {
        let weight = fill(&reference, &host, 0, 2, &wave(ROWS * COLS, step));
        close(&values(&gpu, out), &product(&reference, &weight, &x));
    }
    assert!(lent.iter().all(|lease| lease.load(Ordering::SeqCst)), "all ran before the answers came");
    let counts = gpu.counts().unwrap().since(&before);
    assert_eq!(counts.copies, 0, "{counts:?}");
    // With nothing lent there is nothing to wait for, and what is released now guards nothing that runs.
    gpu.reclaim().unwrap();
    let lease = Arc::new(AtomicBool::new(false));
    gpu.release(Box::new(Lease(lease.clone())));
    gpu.reclaim().unwrap();
    assert!(lease.load(Ordering::SeqCst));
}

/// The pages stay for as long as the device may read them, whoever forgets them first.
#[test]
fn shared_pages_outlive_what_was_recorded_with_them() {
    let Some(gpu) = sharing() else { return };
    let x = wave(3 * COLS, 0.21);
    let on_device = tensor(&gpu, 3, COLS, &x);
    let mut outs = Vec::new();
    for i in 0..20 {
        let slab = gpu.alloc_shared(4096).unwrap();
        let weight = fill(&gpu, &slab, 0, 2, &wave(ROWS * COLS, 0.01 * (i + 1) as f32));
        let mut out = zeros(&gpu, 3, ROWS);
        gpu.linear(&on_device, &weight, None, &mut out).unwrap();
        outs.push(out);
    }
    let reference = Reference::default();
    let host = reference.alloc_shared(4096).unwrap();
    for (i, out) in outs.iter().enumerate() {
        let weight = fill(&reference, &host, 0, 2, &wave(ROWS * COLS, 0.01 * (i + 1) as f32));
        close(&values(&gpu, out), &product(&reference, &weight, &x));
    }
    let slab = gpu.alloc_shared(4096).unwrap();
    drop(gpu);
    // SAFETY: the slab is this test's alone.
    unsafe { slab.host().unwrap().as_ptr().write_bytes(7, 4096) };
}

#[test]
fn writes_and_ops_keep_their_order() {
    let Some(gpu) = gpu() else { return };
    let mut x = tensor(&gpu, 1, 8, &[1.0; 8]);
    let y = tensor(&gpu, 1, 8, &[10.0; 8]);
    gpu.add(&mut x, &y).unwrap();
    gpu.write(x.block_mut(), 4, bytemuck::cast_slice(&[5.0f32, 6.0])).unwrap();
    gpu.add(&mut x, &y).unwrap();
    assert_eq!(values(&gpu, &x), [21.0, 15.0, 16.0, 21.0, 21.0, 21.0, 21.0, 21.0]);
}

#[test]
fn what_is_recorded_waits_for_its_ids() {
    let Some(gpu) = gpu() else { return };
    let slab = gpu.alloc_shared(4096).unwrap();
    let table = fill(&gpu, &slab, 0, 0, &wave(ROWS * COLS, 0.3));
    let (mut out, mut sum) = (tensor(&gpu, 1, COLS, &[1.0; COLS]), tensor(&gpu, 1, COLS, &[0.5; COLS]));
    let record = |out: &mut Tensor, sum: &mut Tensor| {
        let mut ops = || gpu.embed(&table, &[0], out).and_then(|()| gpu.add(sum, out));
        gpu.record(&mut ops).unwrap().expect("a GPU records")
    };
    let first = record(&mut out, &mut sum);
    let second = record(&mut out, &mut sum);
    assert_eq!(values(&gpu, &out), [1.0; COLS], "nothing has run");
    // In between the same memory serves others, and uploads of theirs.
    gpu.gather_rows(&tensor(&gpu, 2, COLS, &[3.0; 2 * COLS]), &[1], &mut out).unwrap();
    gpu.run_recorded(second, &[7]).unwrap();
    gpu.run_recorded(first, &[19]).unwrap();
    let rows = Reference::default();
    let row = |id| {
        let slab = rows.alloc_shared(4096).unwrap();
        let (table, mut out) =
            (fill(&rows, &slab, 0, 0, &wave(ROWS * COLS, 0.3)), tensor(&rows, 1, COLS, &[0.0; COLS]));
        rows.embed(&table, &[id], &mut out).unwrap();
        values(&rows, &out)
    };
    close(&values(&gpu, &out), &row(19));
    let want: Vec<f32> = row(7).iter().zip(row(19)).map(|(a, b)| 0.5 + a + b).collect();
    close(&values(&gpu, &sum), &want);

    // Who waits in there records nothing, and nothing of it is left behind.
    let waits =
        gpu.record(&mut || gpu.add(&mut sum, &out).and_then(|()| gpu.read(out.block(), 0, &mut [0; 4])));
    assert_eq!(waits.map(|_| ()).unwrap_err().kind(), ErrorKind::Unsupported);
    close(&values(&gpu, &sum), &want);
    let mut one_id =
        || gpu.record(&mut || gpu.embed(&table, &[0], &mut out)).unwrap().expect("a GPU records");
    for ids in [&[1, 2][..], &[ROWS as u32], &[]] {
        assert_eq!(gpu.run_recorded(one_id(), ids).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}

#[test]
fn other_threads_are_not_recorded() {
    let Some(gpu) = gpu() else { return };
    let (mut x, y) = (tensor(&gpu, 1, COLS, &[1.0; COLS]), tensor(&gpu, 1, COLS, &[0.5; COLS]));
    let mut theirs = tensor(&gpu, 1, COLS, &[2.0; COLS]);
    let recorded = gpu.record(&mut || {
        gpu.add(&mut x, &y)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                gpu.add(&mut theirs, &y).unwrap();
                assert_eq!(values(&gpu, &theirs), [2.5; COLS], "they may wait");
                assert!(gpu.record(&mut || unreachable!()).unwrap().is_none(), "one at a time");
            });
        });
        gpu.add(&mut x, &y)
    });
    let recorded = recorded.unwrap().expect("a GPU records");
    assert_eq!(values(&gpu, &x), [1.0; COLS]);
    gpu.run_recorded(recorded, &[]).unwrap();
    assert_eq!(values(&gpu, &x), [2.0; COLS]);

    // A panic leaves nothing behind that refuses to be waited for.
    let panics = std::panic::AssertUnwindSafe(|| gpu.record(&mut || panic!("on purpose")).map(|_| ()));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(values(&gpu, &x), [2.0; COLS]);
}

#[test]
fn blocks_are_zeroed_and_bytes_land_anywhere() {
    let Some(gpu) = gpu() else { return };
    let mut block = gpu.alloc(103).unwrap();
    gpu.write(&mut block, 5, b"tide").unwrap();
    gpu.write(&mut block, 98, b"mills").unwrap();
    let mut out = vec![1u8; 103];
    gpu.read(&block, 0, &mut out).unwrap();
    let mut want = vec![0u8; 103];
    want[5..9].copy_from_slice(b"tide");
    want[98..].copy_from_slice(b"mills");
    assert_eq!(out, want);
    let mut word = [0; 3];
    gpu.read(&block, 6, &mut word).unwrap();
    assert_eq!(&word, b"ide");
    let mut words = [0; 8];
    gpu.read(&block, 4, &mut words).unwrap();
    assert_eq!(words, want[4..12]);
}

#[test]
fn refusals_are_typed() {
    let Some(gpu) = gpu() else { return };
    let limit = gpu.info().buffer_bytes_max;
    assert_eq!(gpu.alloc(limit + 1).expect_err("over the limit").kind(), ErrorKind::Memory);
    let mut block = gpu.alloc(16).unwrap();
    assert_eq!(gpu.write(&mut block, 14, &[0; 4]).unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(gpu.read(&block, 14, &mut [0; 4]).unwrap_err().kind(), ErrorKind::InvalidRequest);
    let slab = gpu.alloc_shared(16).unwrap();
    assert_eq!(gpu.publish(&slab, 8..17).unwrap_err().kind(), ErrorKind::InvalidRequest);
    let block = gpu.alloc(16).unwrap();
    for (at, bytes) in [(8, 12), (2, 4), (0, 3), (usize::MAX - 3, 8)] {
        let refused = gpu.upload(block.buffer(), at, &vec![0; bytes]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidRequest, "{bytes} at {at}");
    }
    let refused = Reference::default().upload(block.buffer(), 0, &[0; 4]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let foreign = tensor(&Reference::default(), 1, 4, &[0.0; 4]);
    let mut own = tensor(&gpu, 1, 4, &[0.0; 4]);
    assert_eq!(gpu.add(&mut own, &foreign).unwrap_err().kind(), ErrorKind::Device);
    assert_eq!(values(&gpu, &own), [0.0; 4], "the device still works");
    let none = GpuOptions { adapter: Some("no such adapter".into()), ..GpuOptions::default() };
    assert_eq!(Gpu::open(&none).map(|_| ()).unwrap_err().kind(), ErrorKind::Device);
}

/// What a copy of host memory goes through is used again, by copies of any size, in the order in which they were made.
#[test]
fn copies_of_any_size_arrive_in_their_order() {
    let Some(gpu) = gpu() else { return };
    const BYTES: usize = 40 << 20; // more than one staging buffer, twice more than all of them in a few rounds
    let slab = gpu.alloc_shared(BYTES).unwrap();
    let host = slab.host().unwrap();
    let stripes = [(0, BYTES), (0, 3 << 20), (4096, 100), (5 << 20, 30 << 20), (8192, 65540), (8200, 8)];
    let mut want = vec![0u8; BYTES];
    for round in 0..5u8 {
        for (i, &(at, bytes)) in stripes.iter().enumerate() {
            let value = 10 * round + i as u8 + 1;
            want[at..at + bytes].fill(value);
            // SAFETY: the range lies in the slab, which nobody else uses now.
            unsafe { host.as_ptr().add(at).write_bytes(value, bytes) };
            gpu.publish(&slab, at..at + bytes).unwrap();
            // The bytes are the host's again, though nothing was submitted.
            // SAFETY: as above.
            unsafe { host.as_ptr().add(at).write_bytes(255, bytes) };
        }
        assert!(on_device(&gpu, &slab, BYTES) == want, "round {round}");
    }
}

/// What the device has of a slab, as the rows of a table of floats.
fn on_device(gpu: &Gpu, slab: &Buffer, bytes: usize) -> Vec<u8> {
    let (cols, rows) = (1024, bytes / 4096);
    // SAFETY: the slab is written again only after the table is gone.
    let view = unsafe { View::new(slab, 0..bytes) }.unwrap();
    let table = Weight::new(Format::F32, rows, cols, vec![view]).unwrap();
    let ids: Vec<u32> = (0..rows as u32).collect();
    let mut out = Tensor::new(gpu.alloc(bytes).unwrap(), rows, cols).unwrap();
    gpu.embed(&table, &ids, &mut out).unwrap();
    let mut all = vec![0; bytes];
    gpu.read(out.block(), 0, &mut all).unwrap();
    all
}

/// A copy that is made while an op is only recorded goes before it; a slot that the op reads is not written until the
/// op is submitted, and then after it: hundreds of slots' worth through one slot.
#[test]
fn a_slot_that_is_refilled_between_submissions_has_each_filling_in_turn() {
    let Some(gpu) = gpu() else { return };
    const SLOT: usize = 3 << 20;
    let slab = gpu.alloc_shared(2 * SLOT).unwrap();
    let host = slab.host().unwrap();
    let rounds = 60;
    let mut sums = tensor(&gpu, 1, 4, &[0.0; 4]);
    for round in 0..rounds {
        let slot = (round % 2) * SLOT;
        let values = vec![(round + 1) as f32; SLOT / 4];
        // SAFETY: the slot lies in the slab; ops that read it were submitted, and have a copy of the device's own.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), host.as_ptr().add(slot), SLOT) };
        gpu.publish(&slab, slot..slot + SLOT).unwrap();
        // SAFETY: the slot is written again only after the weight is gone.
        let view = unsafe { View::new(&slab, slot..slot + SLOT) }.unwrap();
        let table = Weight::new(Format::F32, SLOT / 16, 4, vec![view]).unwrap();
        let mut row = Tensor::new(gpu.alloc(16).unwrap(), 1, 4).unwrap();
        gpu.embed(&table, &[(SLOT / 16 - 1) as u32], &mut row).unwrap();
        gpu.add(&mut sums, &row).unwrap();
        drop(table);
        if round % 2 == 1 {
            gpu.submit().unwrap();
        }
    }
    let want = (1..=rounds).sum::<usize>() as f32;
    assert_eq!(values(&gpu, &sums), [want; 4]);
    let counts = gpu.counts().unwrap();
    assert_eq!(counts.copies, rounds as u64 + 1, "{counts:?}");
}
