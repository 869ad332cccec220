//! The contract of the disk engines, the same for all of them, and loading of resident weights.

use crate::common;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Model, Random};
use files::ErrorKind;
#[cfg(target_os = "linux")]
use tidemill_store::disk::UringOptions;
use tidemill_store::disk::{
    Disk, Fault, FaultKind, Fill, Inbox, MirrorDisk, PreadDisk, PreadOptions, Priority, ReadRequest, SimDisk,
    SimOptions, ThrottleOptions, ThrottledDisk,
};
use tidemill_store::resident::{Placement, load};
use tidemill_store::{Range, SlabMemory, Window};

/// Every engine on the same file, with the directory that keeps the real ones alive.
fn engines(content: &[u8]) -> (tempfile::TempDir, Vec<Arc<dyn Disk>>) {
    let model = Model { files: vec![content.to_vec()], layouts: Vec::new() };
    let (dir, paths) = model.write();
    let mut engines: Vec<Arc<dyn Disk>> = Vec::new();
    for (workers, direct, piece_bytes) in
        [(1, false, 1 << 20), (8, false, 4096), (8, true, 1), (2, true, 1 << 16)]
    {
        let options = PreadOptions { workers, direct, piece_bytes };
        engines.push(Arc::new(PreadDisk::open(&paths, &options).unwrap()));
    }
    #[cfg(target_os = "linux")]
    for (depth, direct, piece_bytes) in
        [(1, false, 4096), (32, false, 1 << 20), (64, true, 1), (4, true, 1 << 16)]
    {
        engines.extend(common::uring(&paths, &UringOptions { depth, direct, piece_bytes }));
    }
    for (seed, direct) in [(1, true), (2, false)] {
        let options = SimOptions { seed, direct, piece_bytes: 8192, ..SimOptions::default() };
        let sim: Arc<dyn Disk> = Arc::new(SimDisk::new(vec![content.to_vec()], options));
        engines.push(throttled(sim.clone(), 20e9, Duration::from_micros(20)));
        engines.push(sim);
    }
    let pread: Arc<dyn Disk> = Arc::new(PreadDisk::open(&paths, &PreadOptions::default()).unwrap());
    let sim = Arc::new(SimDisk::new(vec![content.to_vec()], SimOptions { seed: 3, ..SimOptions::default() }));
    engines.push(Arc::new(MirrorDisk::new([pread.clone(), sim], [1e9, 2e9]).unwrap()));
    engines.push(throttled(pread, 1e9, Duration::ZERO));
    (dir, engines)
}

fn throttled(disk: Arc<dyn Disk>, bytes_per_s: f64, latency: Duration) -> Arc<dyn Disk> {
    Arc::new(ThrottledDisk::new(disk, &ThrottleOptions { bytes_per_s, latency }).unwrap())
}

fn content(bytes: usize) -> Vec<u8> {
    let mut random = Random(bytes as u64);
    (0..bytes).map(|_| random.next() as u8).collect()
}

fn windows(count: usize, bytes: usize) -> Vec<Window> {
    SlabMemory::anonymous(count * bytes).unwrap().cut(0, bytes).unwrap()
}

fn request(disk: &dyn Disk, inbox: &mut Inbox, window: Window, fills: Vec<Fill>) -> ReadRequest {
    let reply = inbox.expect();
    ReadRequest { ticket: disk.ticket(), priority: Priority::Demand, window, fills, reply }
}

fn fill(offset: u64, bytes: u64, at: usize) -> Fill {
    Fill { range: Range { file: 0, offset, bytes }, at }
}

#[test]
fn any_offset_and_size_up_to_the_last_byte() {
    let content = content(70_001);
    let (_dir, engines) = engines(&content);
    for disk in engines {
        assert_eq!((disk.files(), disk.file_bytes(0), disk.file_bytes(1)), (1, Some(70_001), None));
        let mut inbox = Inbox::default();
        let mut random = Random(5);
        let mut wanted = std::collections::HashMap::new();
        for window in windows(60, 80 << 10) {
            let offset = random.below(content.len());
            let bytes = if random.below(4) == 0 {
                content.len() - offset
            } else {
                random.below(content.len() - offset)
            };
            let request =
                request(&*disk, &mut inbox, window, vec![fill(offset as u64, bytes as u64, offset % 4096)]);
            wanted.insert(request.ticket, (offset, bytes));
            disk.submit(vec![request]);
        }
        while let Some(completion) = inbox.wait(&*disk) {
            let (offset, bytes) = wanted.remove(&completion.ticket).unwrap();
            assert!(completion.result.unwrap() >= bytes as u64, "{}", disk.describe());
            assert!(completion.started <= completion.finished);
            let got = &completion.window.as_slice()[offset % 4096..][..bytes];
            assert!(got == &content[offset..][..bytes], "{}: {bytes} bytes at {offset}", disk.describe());
        }
        assert!(wanted.is_empty());
    }
}

#[test]
fn a_read_past_the_end_is_corrupt_and_names_the_file() {
    let (_dir, engines) = engines(&content(10_000));
    for disk in engines {
        for offset in [9_000, 10_000, 12_288, 1 << 40] {
            let mut inbox = Inbox::default();
            let window = windows(1, 8192).remove(0);
            let fills = vec![fill(offset, 1001, (offset % 4096) as usize)];
            disk.submit(vec![request(&*disk, &mut inbox, window, fills)]);
            let error = inbox.wait(&*disk).unwrap().result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.message().contains(&disk.file_name(0)), "{error}");
            assert!(inbox.wait(&*disk).is_none() && inbox.poll(&*disk).is_none());
        }
    }
}

#[test]
fn fills_that_do_not_fit_write_nothing_and_give_the_window_back() {
    let (_dir, engines) = engines(&content(30_000));
    let cases = [
        vec![fill(0, 8193, 0)],                     // too long
        vec![fill(1, 8192, 1)],                     // its superset is too long
        vec![fill(0, 10, 100)],                     // not congruent
        vec![fill(100, 10, 0)],                     // not congruent, before the window
        vec![fill(0, 10, 0), fill(20, 10, 20)],     // supersets overlap
        vec![fill(u64::MAX - 4095, u64::MAX, 0)],   // overflow
        vec![fill(0, 10, 8192)],                    // behind the window
        vec![fill(0, 10, 0), fill(0, 10, 1 << 40)], // one of two
    ];
    for disk in engines {
        for fills in &cases {
            let mut inbox = Inbox::default();
            disk.submit(vec![request(&*disk, &mut inbox, windows(1, 8192).remove(0), fills.clone())]);
            let completion = inbox.wait(&*disk).unwrap();
            assert_eq!(completion.result.unwrap_err().kind(), ErrorKind::InvalidRequest, "{fills:?}");
            assert!(completion.window.as_slice().iter().all(|b| *b == 0));
        }
        let mut inbox = Inbox::default();
        let no_file = Fill { range: Range { file: 1, offset: 0, bytes: 1 }, at: 0 };
        disk.submit(vec![request(&*disk, &mut inbox, windows(1, 8192).remove(0), vec![no_file])]);
        assert_eq!(inbox.wait(&*disk).unwrap().result.unwrap_err().kind(), ErrorKind::InvalidRequest);
        disk.submit(vec![request(&*disk, &mut inbox, windows(1, 8192).remove(0), vec![])]);
        assert_eq!(inbox.wait(&*disk).unwrap().result.unwrap(), 0);
    }
}

#[test]
fn cancelled_reads_complete_once_and_demand_passes_speculation() {
    let content = content(400_000);
    let options = SimOptions { reorder: true, short_reads: false, ..SimOptions::default() };
    let disk = SimDisk::new(vec![content.clone()], options);
    let mut inbox = Inbox::default();
    let mut tickets = Vec::new();
    for (i, window) in windows(6, 128 << 10).into_iter().enumerate() {
        let mut request = request(&disk, &mut inbox, window, vec![fill(0, 100_000, 0)]);
        request.priority = if i < 4 { Priority::Speculative } else { Priority::Demand };
        tickets.push(request.ticket);
        disk.submit(vec![request]);
    }
    disk.promote(&tickets[3..4]);
    disk.cancel(&tickets[..1]);
    disk.cancel(&tickets[..1]);
    let order: Vec<_> = std::iter::from_fn(|| inbox.wait(&disk)).collect();
    assert_eq!(order.len(), 6);
    assert_eq!(order[0].ticket, tickets[0]);
    assert_eq!(order[0].result.as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
    let first: std::collections::BTreeSet<_> = order[1..4].iter().map(|c| c.ticket).collect();
    assert_eq!(first, tickets[3..6].iter().copied().collect());
    assert!(
        order[1..].iter().all(|c| c.result.is_ok() && c.window.as_slice()[..100_000] == content[..100_000])
    );
}

#[test]
fn one_seed_gives_one_run_and_seeds_differ() {
    let run = |seed| {
        let disk = SimDisk::new(vec![content(200_000)], SimOptions { seed, ..SimOptions::default() });
        let mut inbox = Inbox::default();
        for window in windows(12, 64 << 10) {
            disk.submit(vec![request(&disk, &mut inbox, window, vec![fill(4096, 60_000, 0)])]);
        }
        let order: Vec<_> = std::iter::from_fn(|| inbox.wait(&disk)).map(|c| c.ticket).collect();
        (order, disk.elapsed(), disk.pieces_read())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).0, run(4).0);
}

#[test]
fn dropping_an_engine_completes_what_it_had_queued() {
    let content = content(1 << 20);
    let (_dir, engines) = engines(&content);
    for disk in engines {
        let mut inbox = Inbox::default();
        let requests = windows(20, 1 << 20).into_iter();
        let requests = requests.map(|w| request(&*disk, &mut inbox, w, vec![fill(0, 1 << 20, 0)])).collect();
        disk.submit(requests);
        drop(disk);
        let idle = SimDisk::new(Vec::new(), SimOptions::default());
        let mut ends = 0;
        while let Some(completion) = inbox.wait(&idle) {
            ends += 1;
            match completion.result {
                Ok(_) => assert!(completion.window.as_slice() == content),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            }
        }
        assert_eq!(ends, 20);
    }
}

#[test]
fn opening_names_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: PathBuf| PreadDisk::open(&[path], &PreadOptions::default()).map(|_| ()).unwrap_err();
    let missing = open(dir.path().join("no-such.gguf"));
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.message().contains("no-such.gguf"), "{missing}");
    assert_eq!(open(dir.path().to_path_buf()).kind(), ErrorKind::InvalidRequest);
}

fn placements(content: &[u8]) -> (Vec<Placement>, Vec<usize>) {
    let mut random = Random(11);
    let mut slab_bytes = vec![0; 3];
    let mut place = |offset: usize, bytes: usize, slab: usize| {
        let at = slab_bytes[slab] + random.below(100);
        slab_bytes[slab] = at + bytes;
        Placement { range: Range { file: 0, offset: offset as u64, bytes: bytes as u64 }, slab, offset: at }
    };
    let all = vec![
        place(0, 17, 0),
        place(4_000, 3_000_001, 1),
        place(3_004_001, content.len() - 3_004_001, 2),
        place(77, 0, 0),
        place(content.len() - 1, 1, 0),
        place(123_457, 2 << 20, 1),
    ];
    // Congruent with the file modulo the page: read in place, but for ragged ends, which keep off their neighbours.
    let mut all = all;
    for (offset, bytes, slab) in
        [(4_097, 2_300_000, 0), (8192, 3 << 20, 2), (70_000, 5_000, 1), (1_000, 90, 0)]
    {
        let at: usize = slab_bytes[slab];
        let at = at + (offset + 4096 - at % 4096) % 4096;
        slab_bytes[slab] = at + bytes;
        all.push(Placement {
            range: Range { file: 0, offset: offset as u64, bytes: bytes as u64 },
            slab,
            offset: at,
        });
    }
    (all, slab_bytes)
}

#[test]
fn resident_weights_arrive_whole_from_every_engine() {
    let content = content(5_000_003);
    let (places, slab_bytes) = placements(&content);
    let total: u64 = places.iter().map(|p| p.range.bytes).sum();
    let (_dir, engines) = engines(&content);
    for disk in engines {
        let mut slabs: Vec<_> = slab_bytes.iter().map(|b| SlabMemory::anonymous(*b).unwrap()).collect();
        let mut seen = Vec::new();
        slabs.iter_mut().for_each(|s| s.as_mut_slice().fill(0xA5));
        let loaded = load(&disk, &mut slabs, &places, &mut |done, of| {
            assert_eq!(of, total);
            seen.push(done);
            ControlFlow::Continue(())
        });
        assert_eq!(loaded.unwrap(), total);
        assert!(seen.is_sorted() && seen.last() == Some(&total) && seen.len() >= 5);
        for p in &places {
            let bytes = p.range.bytes as usize;
            let got = &slabs[p.slab].as_mut_slice()[p.offset..][..bytes];
            assert!(got == &content[p.range.offset as usize..][..bytes], "{}: {p:?}", disk.describe());
        }
        for (i, slab) in slabs.iter_mut().enumerate() {
            let mut untouched = vec![true; slab.bytes()];
            let here = places.iter().filter(|p| p.slab == i);
            here.for_each(|p| untouched[p.offset..][..p.range.bytes as usize].fill(false));
            let bytes = slab.as_mut_slice().iter().zip(untouched);
            assert!(
                bytes.filter(|b| b.1).all(|b| *b.0 == 0xA5),
                "{}: written beside a weight",
                disk.describe()
            );
        }
    }
}

#[test]
fn loading_can_be_broken_off_and_fails_cleanly() {
    let content = content(5_000_003);
    let (places, slab_bytes) = placements(&content);
    let mut slabs: Vec<_> = slab_bytes.iter().map(|b| SlabMemory::anonymous(*b).unwrap()).collect();
    let sim = Arc::new(SimDisk::new(vec![content], SimOptions::default()));
    let disk: Arc<dyn Disk> = sim.clone();
    let mut go = |_, _| ControlFlow::Continue(());
    let mut calls = 0;
    let error = load(&disk, &mut slabs, &places, &mut |_, _| {
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((error.unwrap_err().kind(), calls), (ErrorKind::Cancelled, 2));
    sim.inject(Fault { range: places[5].range, kind: FaultKind::Io, times: 1 });
    let error = load(&disk, &mut slabs, &places, &mut go).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.message().contains("sim-0"), "{error}");
    assert!(load(&disk, &mut slabs, &places, &mut go).is_ok());
    let outside = Placement { slab: 3, ..places[0] };
    assert_eq!(load(&disk, &mut slabs, &[outside], &mut go).unwrap_err().kind(), ErrorKind::InvalidRequest);
    let overlap = [places[0], Placement { offset: places[0].offset + 1, ..places[0] }];
    assert_eq!(load(&disk, &mut slabs, &overlap, &mut go).unwrap_err().kind(), ErrorKind::InvalidRequest);
    let long = Placement { range: Range { file: 0, offset: 5_000_000, bytes: 4 }, slab: 0, offset: 0 };
    assert_eq!(load(&disk, &mut slabs, &[long], &mut go).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(load(&disk, &mut slabs, &[], &mut go).unwrap(), 0);
}

#[test]
fn a_throttled_drive_keeps_its_rate_and_latency() {
    let content = content(8 << 20);
    let sim = Arc::new(SimDisk::new(
        vec![content.clone()],
        SimOptions { short_reads: false, ..SimOptions::default() },
    ));
    // A machine that is busy with other things makes a run slower, never faster: the best of three counts.
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let disk = throttled(sim.clone(), 100e6, Duration::from_millis(30));
        let mut inbox = Inbox::default();
        let start = Instant::now();
        for (i, window) in windows(16, 1 << 20).into_iter().enumerate() {
            let offset = (i % 8) << 20;
            disk.submit(vec![request(&*disk, &mut inbox, window, vec![fill(offset as u64, 1 << 20, 0)])]);
        }
        let (mut last, mut began) = (start, start + Duration::from_secs(9));
        while let Some(completion) = inbox.wait(&*disk) {
            completion.result.unwrap();
            assert!(completion.started <= completion.finished && completion.finished <= Instant::now());
            last = last.max(completion.finished);
            began = began.min(completion.started);
        }
        assert!(began >= start && last <= Instant::now());
        best = best.min(last.duration_since(start).as_secs_f64());
    }
    let exact = (16 << 20) as f64 / 100e6 + 0.030;
    assert!(best >= exact * 0.999 && best < exact * 1.05, "{best:.4} s, {exact:.4} s are right");
}

#[test]
fn a_throttled_drive_serves_demand_first_and_gives_up_at_once() {
    let content = content(4 << 20);
    let sim = Arc::new(SimDisk::new(vec![content], SimOptions::default()));
    let disk = throttled(sim, 200e6, Duration::ZERO);
    let mut inbox = Inbox::default();
    let mut tickets = Vec::new();
    for (i, window) in windows(8, 4 << 20).into_iter().enumerate() {
        let mut request = request(&*disk, &mut inbox, window, vec![fill(0, 4 << 20, 0)]);
        request.priority = if i < 6 { Priority::Speculative } else { Priority::Demand };
        tickets.push(request.ticket);
        disk.submit(vec![request]);
    }
    disk.promote(&tickets[5..6]);
    disk.cancel(&tickets[2..5]);
    let order: Vec<_> = std::iter::from_fn(|| inbox.wait(&*disk)).collect();
    let place = |i: usize| order.iter().position(|c| c.ticket == tickets[i]).unwrap();
    assert_eq!(order.len(), 8);
    for i in 2..5 {
        assert!(place(i) < 3, "a cancelled read need not wait for the drive");
        assert_eq!(order[place(i)].result.as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
    }
    // The drive may have begun with a guess before the demands came; the other guess is last.
    assert_eq!(place(1).max(place(0)), 7);
    assert!(place(5) < 7 && place(6) < 7 && place(7) < 7);
}

#[test]
fn a_mirror_has_the_rates_of_both_drives() {
    let content = content(8 << 20);
    let sim = || {
        Arc::new(SimDisk::new(
            vec![content.clone()],
            SimOptions { short_reads: false, ..SimOptions::default() },
        ))
    };
    let (both, fast) = (f64::from(12 * (8 << 20)) / 300e6, f64::from(12 * (8 << 20)) / 200e6);
    let is_right = |best: f64| best < both * 1.3 && best < fast;
    let (mut best, mut shares) = (f64::INFINITY, Vec::new());
    // A busy machine may take a while to show what the drives do.
    while !is_right(best) && shares.len() < 20 {
        let (fast, slow) = (throttled(sim(), 200e6, Duration::ZERO), throttled(sim(), 100e6, Duration::ZERO));
        let disk = MirrorDisk::new([fast, slow], [200e6, 100e6]).unwrap();
        shares.push(disk.describe());
        let mut inbox = Inbox::default();
        let start = Instant::now();
        for window in windows(12, 8 << 20) {
            disk.submit(vec![request(&disk, &mut inbox, window, vec![fill(0, 8 << 20, 0)])]);
        }
        while let Some(completion) = inbox.wait(&disk) {
            assert_eq!(completion.result.unwrap(), 8 << 20);
            assert!(completion.window.as_slice() == content);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    assert!(best >= both * 0.999 && is_right(best), "{best:.3} s, {both:.3} s are right");
    assert!(shares[0].contains("33 % from a copy"), "{shares:?}");
}

#[test]
fn a_mirror_outlives_a_damaged_copy_and_refuses_a_different_one() {
    let content = content(3_000_000);
    let sim = |bytes: usize| Arc::new(SimDisk::new(vec![content[..bytes].to_vec()], SimOptions::default()));
    let (good, bad) = (sim(3_000_000), sim(3_000_000));
    let always = u32::MAX;
    bad.inject(Fault {
        range: Range { file: 0, offset: 0, bytes: 3_000_000 },
        kind: FaultKind::Io,
        times: always,
    });
    let disk = MirrorDisk::new([bad.clone(), good.clone()], [2e9, 1e9]).unwrap();
    let mut inbox = Inbox::default();
    disk.submit(vec![request(&disk, &mut inbox, windows(1, 3 << 20).remove(0), vec![fill(0, 3_000_000, 0)])]);
    let completion = inbox.wait(&disk).unwrap();
    assert_eq!(completion.result.unwrap(), 3_000_000);
    assert!(completion.window.as_slice()[..3_000_000] == content && completion.window.bytes() == 3 << 20);
    good.inject(Fault {
        range: Range { file: 0, offset: 2_999_999, bytes: 1 },
        kind: FaultKind::Io,
        times: always,
    });
    disk.submit(vec![request(&disk, &mut inbox, windows(1, 3 << 20).remove(0), vec![fill(0, 3_000_000, 0)])]);
    let error = inbox.wait(&disk).unwrap().result.unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.message().contains("sim-0"), "{error}");
    let refused = |a, b, rates| MirrorDisk::new([a, b], rates).map(|_| ()).unwrap_err().kind();
    assert_eq!(refused(good.clone(), sim(10), [1.0, 1.0]), ErrorKind::InvalidRequest);
    assert_eq!(refused(good, bad, [1.0, f64::NAN]), ErrorKind::InvalidRequest);
}

#[test]
fn a_file_that_is_written_to_is_noticed() {
    let model = Model { files: vec![vec![1; 9000], vec![2; 5000]], layouts: Vec::new() };
    let (_dir, paths) = model.write();
    let pread: Arc<dyn Disk> = Arc::new(PreadDisk::open(&paths, &PreadOptions::default()).unwrap());
    let slow = ThrottleOptions { bytes_per_s: 1e9, latency: Duration::ZERO };
    let mut disks = vec![pread.clone(), Arc::new(ThrottledDisk::new(pread.clone(), &slow).unwrap())];
    disks.push(Arc::new(MirrorDisk::new([pread.clone(), pread], [1e9, 1e9]).unwrap()));
    #[cfg(target_os = "linux")]
    disks.extend(common::uring(&paths, &UringOptions::default()));
    let check = || disks.iter().map(|disk| disk.check_unchanged()).collect::<Vec<_>>();
    // Reading and another name are no change.
    std::fs::read(&paths[1]).unwrap();
    std::fs::hard_link(&paths[1], paths[1].with_extension("link")).unwrap();
    assert!(check().iter().all(Result::is_ok));
    let file = std::fs::File::options().write(true).open(&paths[1]).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(1);
    file.set_modified(later).unwrap();
    for (disk, changed) in disks.iter().zip(check()) {
        let error = changed.expect_err("written to");
        let name = disk.file_name(1);
        assert!(error.kind() == ErrorKind::Corrupt && error.message().starts_with(&name), "{error}");
    }
}
