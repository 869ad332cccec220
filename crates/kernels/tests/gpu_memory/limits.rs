//! What drivers drop, refuse, and keep.

use files::{ErrorKind, Format};
use tidemill_kernels::buffer::{Block, View, Weight};
use tidemill_kernels::gpu::{Gpu, GpuOptions, Lost};
use tidemill_kernels::ops::{Backend, Precision};

use super::{COLS, gpu, gpu_of, on_device, sharing, tensor, values, wave, zeros};

/// A driver that drops work and reports it as done, as Metal's does through wgpu, must not lead to wrong numbers.
#[test]
fn work_that_a_driver_drops_is_noticed_by_the_next_answer() {
    for gpu in [gpu(), sharing()].into_iter().flatten() {
        commands_that_are_dropped(&gpu);
    }
    let Some(gpu) = gpu() else { return };
    // Copies of host memory, small ones and others, and ids.
    let bytes = 1 << 20;
    let block = gpu.alloc(bytes).unwrap();
    gpu.upload(block.buffer(), 0, &vec![1; bytes]).unwrap();
    gpu.read(&block, 0, &mut [0; 4]).unwrap();
    gpu.lose(Lost::Copies);
    gpu.upload(block.buffer(), 0, &vec![2; bytes]).unwrap();
    dropped(&gpu, &gpu.alloc(16).unwrap());

    let gpu = gpu_of(false).unwrap();
    let (x, mut out) = (tensor(&gpu, 2, 4, &wave(8, 0.3)), zeros(&gpu, 1, 4));
    gpu.gather_rows(&x, &[0], &mut out).unwrap();
    assert_eq!(values(&gpu, &out), wave(8, 0.3)[..4]);
    gpu.lose(Lost::Writes);
    gpu.gather_rows(&x, &[1], &mut out).unwrap();
    gpu.submit().unwrap();
    dropped(&gpu, out.block());

    // A copy between two passes, in whatever else runs after it.
    let gpu = gpu_of(false).unwrap();
    let (mut x, mut y) = (tensor(&gpu, 1, 4, &[1.0; 4]), tensor(&gpu, 1, 4, &[2.0; 4]));
    gpu.copy(x.block(), 0..16, y.block_mut(), 0).unwrap();
    gpu.lose(Lost::Commands);
    gpu.submit().unwrap();
    gpu.clear(x.block_mut(), 0..16).unwrap();
    dropped(&gpu, y.block());
}

fn commands_that_are_dropped(gpu: &Gpu) {
    let (mut x, y) = (tensor(gpu, 1, COLS, &[1.0; COLS]), tensor(gpu, 1, COLS, &[0.5; COLS]));
    gpu.add(&mut x, &y).unwrap();
    gpu.submit().unwrap();
    assert_eq!(values(gpu, &x), [1.5; COLS]);
    let recorded = gpu.record(&mut || gpu.add(&mut x, &y)).unwrap().expect("a GPU records");
    gpu.run_recorded(recorded, &[]).unwrap();
    assert_eq!(values(gpu, &x), [2.0; COLS]);
    gpu.lose(Lost::Commands);
    gpu.add(&mut x, &y).unwrap();
    gpu.submit().unwrap();
    // Later work runs, on what was lost.
    gpu.add(&mut x, &y).unwrap();
    dropped(gpu, x.block());
    dropped(gpu, x.block());
}

/// Nothing can be read any more.
fn dropped(gpu: &Gpu, block: &Block) {
    let mut out = [7u8; 4];
    let error = gpu.read(block, 0, &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.to_string().contains("dropped work"), "{error}");
    assert_eq!(out, [7; 4], "no number leaves the device");
}

/// The answer's own copy is lost: what is read must not be the answer before.
#[test]
fn an_answer_that_never_came_is_not_the_one_before() {
    let Some(gpu) = gpu() else { return };
    let x = tensor(&gpu, 1, 4, &[1.0; 4]);
    assert_eq!(values(&gpu, &x), [1.0; 4]);
    gpu.lose(Lost::Commands);
    dropped(&gpu, x.block());
}

/// Copies that nobody computes with, more of them than the tally has words.
#[test]
fn many_copies_before_an_answer_are_all_counted() {
    const BYTES: usize = 40 << 20;
    for lost in [false, true] {
        let Some(gpu) = gpu() else { return };
        let block = gpu.alloc(BYTES).unwrap();
        for round in 0..12u8 {
            if lost && round == 3 {
                gpu.lose(Lost::Copies);
            }
            gpu.upload(block.buffer(), 0, &vec![round; BYTES]).unwrap();
        }
        if lost {
            dropped(&gpu, &block);
        } else {
            let mut out = [0; 4];
            gpu.read(&block, BYTES - 4, &mut out).unwrap();
            assert_eq!(out, [11; 4]);
        }
    }
}

/// However little a driver allows, what is offered as the largest buffer can be had, rounded as it may be.
#[test]
fn the_largest_buffer_is_within_the_limit_however_it_is_rounded() {
    for share in [false, true] {
        let Some(_) = gpu_of(share) else { return };
        for limit in [(1 << 20) + 40960, 1 << 20, (1 << 20) - 4096] {
            let options =
                GpuOptions { share: Some(share), buffer_bytes_max: Some(limit), ..GpuOptions::default() };
            let gpu = Gpu::open(&options).unwrap();
            let most = gpu.info().buffer_bytes_max;
            assert!(most as u64 <= limit, "{most} of {limit}");
            assert!(most as u64 + (72 << 10) > limit, "{most} of {limit} gives much away");
            let slab = gpu.alloc_shared(most).unwrap();
            let block = gpu.alloc(most).unwrap();
            gpu.read(&block, most - 4, &mut [0; 4]).unwrap();
            assert_eq!(on_device(&gpu, &slab, most / 4096 * 4096).len(), most / 4096 * 4096);
            assert_eq!(gpu.alloc_shared(most + 1).map(|_| ()).unwrap_err().kind(), ErrorKind::Memory);
        }
    }
}

/// What takes a slow device longer than its system allows is submitted in parts, which give the same answer.
#[test]
fn long_work_is_submitted_in_parts() {
    let Some(whole) = gpu() else { return };
    let options = GpuOptions {
        precision: Precision::Exact,
        share: Some(false),
        submission_s: 1e-4,
        ..GpuOptions::default()
    };
    let parts = Gpu::open(&options).unwrap();
    const N: usize = 256;
    const ROWS: usize = 1100;
    // 1,100 rows are 144 million operations: 1.4 ms at 100 billion a second, a tenth of that at a trillion.
    let run = |gpu: &Gpu| {
        let slab = gpu.alloc_shared(4 * N * N).unwrap();
        let weights = wave(N * N, 0.37);
        let host = slab.host().unwrap().as_ptr();
        // SAFETY: the slab is this function's alone, and as large.
        unsafe { std::ptr::copy_nonoverlapping(weights.as_ptr().cast(), host, 4 * N * N) };
        gpu.publish(&slab, 0..4 * N * N).unwrap();
        // SAFETY: nobody writes it any more.
        let view = unsafe { View::new(&slab, 0..4 * N * N) }.unwrap();
        let weight = Weight::new(Format::F32, N, N, vec![view]).unwrap();
        let (x, mut out) = (tensor(gpu, ROWS, N, &wave(ROWS * N, 0.11)), zeros(gpu, ROWS, N));
        let mut picked = zeros(gpu, 1, N);
        let before = gpu.counts().unwrap();
        for id in 0..4 {
            // What is uploaded stays for the parts that follow.
            gpu.linear(&x, &weight, None, &mut out).unwrap();
            gpu.gather_rows(&out, &[ROWS as u32 - 1 - id], &mut picked).unwrap();
        }
        let answers = (values(gpu, &out), values(gpu, &picked));
        (answers, gpu.counts().unwrap().since(&before).submissions)
    };
    let ((want, picked_want), submissions) = run(&whole);
    assert_eq!(submissions, 2, "one for each answer");
    let ((got, picked), submissions) = run(&parts);
    assert!(submissions >= 6, "{submissions}");
    assert!(got == want && picked == picked_want);
}

/// What a driver compiles is kept for the next run; what is no such file, or is damaged, costs time and nothing else.
#[test]
fn pipelines_are_kept_in_a_folder_and_damaged_ones_are_made_anew() {
    let Some(_) = gpu() else { return };
    let folder = std::env::temp_dir().join(format!("tidemill-pipelines-{}", std::process::id()));
    let run = || {
        let options = GpuOptions { cache_dir: Some(folder.join("deep")), ..GpuOptions::default() };
        let gpu = Gpu::open(&options).unwrap();
        let (mut x, y) = (tensor(&gpu, 1, COLS, &[1.0; COLS]), tensor(&gpu, 1, COLS, &[0.5; COLS]));
        gpu.add(&mut x, &y).unwrap();
        assert_eq!(values(&gpu, &x), [1.5; COLS]);
        gpu
    };
    let keeps = run().features().iter().any(|(name, value)| *name == "pipeline_cache" && value == "true");
    if !keeps {
        // Metal's driver has a cache of its own.
        println!("SKIP gpu: the driver hands out nothing to keep");
        return;
    }
    let files =
        || -> Vec<_> { std::fs::read_dir(folder.join("deep")).unwrap().map(|e| e.unwrap().path()).collect() };
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    let whole = std::fs::read(file).unwrap();
    // A software driver has little to say.
    assert!(whole.len() > 96, "{} bytes", whole.len());
    let damaged: [&dyn Fn(&mut Vec<u8>); 4] = [
        &|all| all.truncate(70),
        &|all| all.clear(),
        &|all| all.iter_mut().skip(60).for_each(|byte| *byte = 0x5a),
        &|all| *all = b"something else".to_vec(),
    ];
    for damage in damaged {
        let mut all = whole.clone();
        damage(&mut all);
        std::fs::write(file, &all).unwrap();
        drop(run());
        let anew = std::fs::read(file).unwrap();
        assert!(anew.len() == whole.len() && anew != all, "written anew");
    }
    assert_eq!(files().len(), 1, "nothing is left beside it");
    std::fs::remove_dir_all(&folder).unwrap();
    // Nor does it matter that nothing can be written.
    std::fs::write(&folder, "a file").unwrap();
    drop(run());
    std::fs::remove_file(&folder).unwrap();
}
