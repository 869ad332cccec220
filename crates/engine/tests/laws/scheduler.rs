//! Requests that share steps: each gets the answer that it gets alone, whatever becomes of the others.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use store::Range;
use store::disk::{Fault, FaultKind, SimDisk};
use tidemill_engine::generate::{FinishReason, GenerateOptions, Generated, generate};
use tidemill_engine::sample::SampleParams;
use tidemill_engine::scheduler::{Listener, Request, RequestEvent, Scheduler, SchedulerOptions, Ticket};
use tidemill_engine::text::Tokenizer;
use tidemill_engine::{ErrorKind, Model, OpenOptions, Session};

use super::tools::{Dice, bits, golden, last_bits, on_sim, tokens};
use crate::common::{go, open, root};

const PARALLEL: usize = 4;
const CANCELLED: [&str; 2] = ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"];
pub(super) const TOGETHER: SchedulerOptions = SchedulerOptions { parallel: PARALLEL, answers_share: 0.5 };

/// A drive, a model on it for requests, the same model for those who are alone, and its tokenizer.
pub(super) fn demo() -> (Arc<SimDisk>, Arc<Model>, Arc<Model>, Arc<Tokenizer>) {
    demo_in_chunks(32)
}

pub(super) fn demo_in_chunks(chunk: usize) -> (Arc<SimDisk>, Arc<Model>, Arc<Model>, Arc<Tokenizer>) {
    let path = root().join("models/demo");
    let (disk, options) = on_sim(&path, 5, false);
    let options = OpenOptions {
        sessions: Some(PARALLEL + 2),
        chunk_tokens: Some(chunk),
        context: Some(160),
        slots_max: Some(40),
        ..options
    };
    let model = open(&path, &options);
    let tokenizer = Arc::new(Tokenizer::of_model(model.meta()).expect("a tokenizer"));
    let judge = open(&path, &OpenOptions { context: Some(160), ..OpenOptions::default() });
    (disk, model, judge, tokenizer)
}

pub(super) fn request(model: &Model, seed: u64, prompt: usize, answer: usize) -> Request {
    let sampling = match seed % 2 {
        0 => SampleParams::greedy(),
        _ => SampleParams { temperature: 0.9, seed: Some(seed), ..SampleParams::default() },
    };
    let options =
        GenerateOptions { sampling, max_tokens: Some(answer), ignore_end: true, ..Default::default() };
    Request {
        prompt: tokens(model, seed, prompt),
        options,
        borders: Vec::new(),
        cache: true,
        priority: 0,
        client: 0,
        deadline: None,
    }
}

pub(super) fn alone(model: &Arc<Model>, tokenizer: &Tokenizer, request: &Request) -> Vec<u32> {
    let mut session = Session::new(model).expect("a place is left");
    let mut go = |_| ControlFlow::Continue(());
    generate(&mut session, tokenizer, &request.prompt, &request.options, &mut go).expect("runs").tokens
}

pub(super) fn wait(ticket: &Ticket) -> tidemill_engine::Result<Generated> {
    loop {
        match ticket.next_event().expect("the last event is the end") {
            RequestEvent::Ended(end) => return end,
            RequestEvent::Prompt { done_tokens, total_tokens } => assert!(done_tokens <= total_tokens as f64),
            RequestEvent::Begun { .. } | RequestEvent::Reply(_) => {}
        }
    }
}

#[test]
fn answers_in_company_are_those_alone() {
    let (_, model, judge, tokenizer) = demo();
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
    let requests: Vec<Request> =
        (0..10).map(|i| request(&model, i, 5 + 13 * i as usize % 90, 3 + 5 * i as usize % 17)).collect();
    let tickets: Vec<Ticket> =
        requests.iter().map(|request| scheduler.submit(request.clone()).expect("queues")).collect();
    for (request, ticket) in requests.iter().zip(&tickets) {
        let answer = wait(ticket).expect("answers");
        assert_eq!(answer.finish, FinishReason::Length);
        assert_eq!(answer.prompt_tokens, request.prompt.len());
        assert_eq!(answer.tokens, alone(&judge, &tokenizer, request));
    }
    let counts = scheduler.counts();
    let rows: usize = requests.iter().map(|r| r.prompt.len()).sum();
    assert_eq!((counts.ended, counts.prompt_tokens), (10, rows as u64));
    assert!(counts.steps < counts.answer_tokens, "{counts:?}: nothing was shared");
    drop(scheduler);
    assert_eq!(model.free_states().1, PARALLEL + 2);
}

/// A chunk of somebody's prompt pauses between its layers for the answers of others.
#[test]
fn an_answer_goes_on_while_a_prompt_is_computed() {
    let path = root().join("models/demo");
    let (_, options) = on_sim(&path, 5, false);
    let options = OpenOptions { sessions: Some(3), context: Some(600), slots_max: Some(40), ..options };
    let model = open(&path, &options);
    let judge = open(&path, &OpenOptions { context: Some(600), ..OpenOptions::default() });
    let tokenizer = Arc::new(Tokenizer::of_model(model.meta()).expect("a tokenizer"));
    let options = SchedulerOptions { parallel: 3, answers_share: 0.9 };
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), options).expect("starts");
    let answers = [request(&model, 0, 5, 400), request(&model, 1, 9, 400)];
    let tickets = answers.each_ref().map(|request| scheduler.submit(request.clone()).expect("queues"));
    for ticket in &tickets {
        while !matches!(ticket.next_event().expect("more comes"), RequestEvent::Reply(_)) {}
    }
    let prompt = request(&model, 2, 200, 4);
    let ticket = scheduler.submit(prompt.clone()).expect("queues");
    let mut between = Vec::new();
    let answer = loop {
        match ticket.next_event().expect("the last event is the end") {
            RequestEvent::Ended(end) => break end.expect("answers"),
            RequestEvent::Prompt { .. } => between.push(scheduler.counts().answer_tokens),
            RequestEvent::Begun { .. } | RequestEvent::Reply(_) => {}
        }
    };
    let rises = between.windows(2).filter(|pair| pair[1] > pair[0]).count();
    assert!(rises + 2 >= model.meta().layers, "answer tokens after each layer: {between:?}");
    assert_eq!(answer.tokens, alone(&judge, &tokenizer, &prompt));
    for (request, ticket) in answers.iter().zip(&tickets) {
        assert_eq!(wait(ticket).expect("answers").tokens, alone(&judge, &tokenizer, request));
    }
}

/// Turns of two conversations that begin alike: what was computed is not computed again, and never shows.
#[test]
fn what_ended_or_living_sequences_have_computed_is_reused() {
    let path = root().join("models/demo");
    for set in [None, Some("qwen3_moe-e16/gguf-Q4_0")] {
        let tokenizer =
            Arc::new(Tokenizer::of_model(open(&path, &OpenOptions::default()).meta()).expect("has one"));
        let options = OpenOptions {
            sessions: Some(PARALLEL + 3),
            context: Some(160),
            exact: true,
            ..OpenOptions::default()
        };
        let path = set.map_or(path.clone(), golden);
        let (model, judge) =
            (open(&path, &options), open(&path, &OpenOptions { sessions: None, ..options.clone() }));
        let free = model.free_states();
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
        let ask = |prompt: Vec<u32>| {
            let request = Request { prompt, ..request(&model, 0, 1, 6) };
            let answer = wait(&scheduler.submit(request.clone()).expect("queues")).expect("answers");
            assert_eq!(answer.tokens, alone(&judge, &tokenizer, &request));
            (request.prompt, answer)
        };
        let mut reused = Vec::new();
        for branch in 0..2 {
            let mut prompt = tokens(&model, 1, 40);
            for turn in 0..3 {
                let (mut all, answer) = ask(prompt);
                reused.push(answer.reused_tokens);
                all.extend(answer.tokens);
                all.extend(tokens(&model, 10 * branch + turn, 9));
                prompt = all;
            }
        }
        // The last token of an answer was never computed, nor that of a prompt which is the same.
        assert_eq!(reused[..3], [0, 45, 60], "{set:?}");
        assert!(reused[3] >= 39 || set.is_none(), "{set:?}: {reused:?}");
        assert_eq!(reused[5], 60, "{set:?}: {reused:?}");
        drop(scheduler);
        model.forget_kept();
        assert_eq!(model.free_states(), free);
    }
}

/// Not all can be the largest at once: the youngest wait, are computed again, and answer as if they were alone.
#[test]
fn want_of_pages_costs_time_and_nothing_else() {
    for set in [None, Some("qwen3_moe-e16/gguf-Q4_0")] {
        let path = set.map_or(root().join("models/demo"), golden);
        let options = OpenOptions { exact: true, context: Some(1100), ..OpenOptions::default() };
        let judge = open(&path, &options);
        // Three pages for one, and one for each of the others.
        let (pages_bytes, kept_bytes) = (Some(1), Some(0));
        let options = OpenOptions { sessions: Some(4), pages_bytes, kept_bytes, ..options };
        let model = open(&path, &options);
        let tokenizer =
            Tokenizer::of_model(open(&root().join("models/demo"), &OpenOptions::default()).meta());
        let tokenizer = Arc::new(tokenizer.expect("a tokenizer"));
        let free = model.free_states();
        let scheduler =
            Scheduler::start(model.clone(), tokenizer.clone(), SchedulerOptions::new(4)).expect("starts");
        let requests: Vec<Request> = (0..6).map(|i| request(&model, i, 500 + 90 * i as usize, 30)).collect();
        let tickets: Vec<Ticket> =
            requests.iter().map(|request| scheduler.submit(request.clone()).expect("queues")).collect();
        for (request, ticket) in requests.iter().zip(&tickets) {
            let answer = wait(ticket).expect("answers");
            assert_eq!(answer.tokens, alone(&judge, &tokenizer, request), "{set:?}");
        }
        let counts = scheduler.counts();
        assert!(counts.set_aside > 0 && counts.ended == 6, "{set:?}: {counts:?}");
        drop(scheduler);
        model.forget_kept();
        assert_eq!(model.free_states(), free);
    }
}

#[test]
fn whoever_gives_up_leaves_nothing_behind_and_disturbs_nobody() {
    let (_, model, judge, tokenizer) = demo();
    let free = model.free_states();
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
    let stays = request(&model, 3, 60, 60);
    let mut dice = Dice(17);
    let ticket = scheduler.submit(stays.clone()).expect("queues");
    for round in 0..60 {
        let other = scheduler.submit(request(&model, round, 1 + dice.below(90), 40)).expect("queues");
        for _ in 0..dice.below(6) {
            other.next_event();
        }
        match round % 3 {
            0 => drop(other), // as a client that goes away
            _ => {
                other.cancel();
                let answer = wait(&other).expect("cancelling is no error");
                assert!(matches!(answer.finish, FinishReason::Cancelled | FinishReason::Length));
            }
        }
    }
    assert_eq!(wait(&ticket).expect("answers").tokens, alone(&judge, &tokenizer, &stays));
    drop(scheduler);
    model.forget_kept();
    assert_eq!(model.free_states(), free, "all pages and places came back");
}

/// One of two prompts of a chunk is given up: the chunk ends before all of it is computed, and the other has its answer.
#[test]
fn a_prompt_that_is_given_up_ends_a_chunk_that_was_mostly_its_own() {
    let (_, _, judge, tokenizer) = demo();
    let options = OpenOptions { context: Some(2048), sessions: Some(2), ..OpenOptions::default() };
    let model = open(&root().join("models/demo"), &options);
    let long = request(&model, 1, 1500, 8);
    let short = request(&model, 2, 40, 8);
    let expected = alone(&judge, &tokenizer, &short);
    // Who cancels may come late on a busy machine.
    for attempt in 1.. {
        let options = SchedulerOptions::new(2);
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), options).expect("starts");
        let given_up = scheduler.submit(long.clone()).expect("queues");
        let stays = scheduler.submit(short.clone()).expect("queues");
        given_up.next_event();
        given_up.cancel();
        assert_eq!(wait(&stays).expect("answers").tokens, expected);
        let answer = wait(&given_up).expect("cancelling is no error");
        let computed = scheduler.counts().prompt_tokens;
        model.forget_kept();
        if matches!(answer.finish, FinishReason::Cancelled) && computed < 200 {
            break;
        }
        assert!(attempt < 5, "{computed} tokens computed, {:?}", answer.finish);
    }
}

/// As many requests as `rounds`, of which most are given up: before they begin, in mid-prompt, in mid-answer. They share
/// beginnings, pages and experts, and some are set aside for want of pages.
fn give_up_at_random(set: &str, seed: u64, rounds: usize) {
    let (_, options) = on_sim(&golden(set), seed, true);
    // Two pages for one, and one for each of the others.
    let options = OpenOptions {
        sessions: Some(PARALLEL),
        chunk_tokens: Some(64),
        context: Some(640),
        slots_max: Some(12),
        pages_bytes: Some(1),
        kept_bytes: Some(1),
        ..options
    };
    let model = open(&golden(set), &options);
    let demo = open(&root().join("models/demo"), &OpenOptions::default());
    let tokenizer = Arc::new(Tokenizer::of_model(demo.meta()).expect("a tokenizer"));
    let free = model.free_states();
    let scheduler = Scheduler::start(model.clone(), tokenizer, TOGETHER).expect("starts");
    let mut dice = Dice(seed);
    let (mut tickets, mut answered) = (Vec::new(), 0);
    // How many were answered all the same.
    let given_up = |ticket: Ticket, dice: &mut Dice| match dice.below(3) {
        0 => 0, // as a client that goes away
        _ => {
            ticket.cancel();
            usize::from(wait(&ticket).expect("cancelling is no error").finish == FinishReason::Length)
        }
    };
    for round in 0..rounds {
        let mut new = request(&model, round as u64, 1 + dice.below(30), 1 + dice.below(60));
        let beginning = tokens(&model, dice.below(3) as u64, 520);
        let shared = [0, 10, 20, 40, 520][dice.below(5)];
        new.prompt.splice(0..0, beginning[..shared].iter().copied());
        new.borders = vec![shared];
        new.priority = dice.below(3) as i32;
        if dice.below(10) == 0 {
            new.deadline = Some(Instant::now() + Duration::from_millis(dice.below(20) as u64));
        }
        tickets.push(scheduler.submit(new).expect("queues"));
        if tickets.len() > dice.below(3 * PARALLEL) {
            let ticket: Ticket = tickets.swap_remove(dice.below(tickets.len()));
            // Nothing, or some of its way, or all of it.
            let ended = (0..dice.below(12).saturating_sub(4))
                .any(|_| matches!(ticket.next_event(), Some(RequestEvent::Ended(_))));
            match ended {
                true => answered += 1,
                false => answered += given_up(ticket, &mut dice),
            }
        }
    }
    answered += tickets.into_iter().map(|ticket| given_up(ticket, &mut dice)).sum::<usize>();
    while scheduler.counts().ended < rounds as u64 {
        std::thread::yield_now();
    }
    let counts = scheduler.counts();
    assert_eq!((counts.running, counts.waiting, counts.ended), (0, 0, rounds as u64), "{set}");
    assert!(answered < rounds / 2 && counts.answer_tokens as usize > rounds, "{set}: {answered}, {counts:?}");
    assert!(counts.set_aside > 0 || rounds < 1000, "{set}: {counts:?}");
    drop(scheduler);
    model.forget_kept();
    assert_eq!(model.free_states(), free, "{set}: all pages and places came back");
    // With a single slot, an expert that somebody leases is the only one to be found in memory again.
    model.use_slots(1);
    let mut session = Session::new(&model).expect("all places are free");
    let prompt = tokens(&model, seed, 60);
    session.append(&prompt[..1], &mut go).expect("runs");
    model.reset_read_stats();
    prompt[1..].iter().for_each(|token| session.append(&[*token], &mut go).expect("runs"));
    let experts = model.read_stats().expect("it has experts").total();
    assert_eq!(experts.hits, 0, "{set}: all leases came back: {experts:?}");
    let judge = open(&golden(set), &OpenOptions { exact: true, ..OpenOptions::default() });
    assert_eq!(bits(session.logits()), last_bits(&judge, &prompt), "{set}");
}

#[test]
fn requests_that_are_given_up_at_random_leave_nothing_behind() {
    for (i, set) in CANCELLED.into_iter().enumerate() {
        give_up_at_random(set, 23 + i as u64, 100);
    }
}

#[test]
#[ignore = "two minutes in a debug build; a part of the soak"]
fn a_thousand_requests_that_are_given_up_at_random_leave_nothing_behind() {
    for (i, set) in CANCELLED.into_iter().enumerate() {
        give_up_at_random(set, 29 + i as u64, 1000);
    }
}

#[test]
fn a_drive_that_fails_once_costs_nobody_an_answer_and_one_that_stays_broken_ends_no_process() {
    let (disk, model, judge, tokenizer) = demo();
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
    let everything = Range { file: 0, offset: 0, bytes: u64::MAX };
    let requests: Vec<Request> = (0..4).map(|i| request(&model, i, 40, 30)).collect();
    let submit = || -> Vec<Ticket> {
        requests.iter().map(|request| scheduler.submit(request.clone()).expect("queues")).collect()
    };
    let tickets = submit();
    tickets[0].next_event();
    disk.inject(Fault { range: everything, kind: FaultKind::Io, times: 1 });
    for (request, ticket) in requests.iter().zip(&tickets) {
        let answer = wait(ticket).expect("tried again");
        disk.clear_faults();
        assert_eq!(answer.tokens, alone(&judge, &tokenizer, request));
    }
    model.use_slots(8);
    disk.inject(Fault { range: everything, kind: FaultKind::Io, times: u32::MAX });
    for ticket in &submit() {
        assert_eq!(wait(ticket).expect_err("nothing can be read").kind(), ErrorKind::Io);
    }
    disk.clear_faults();
    for (request, ticket) in requests.iter().zip(&submit()) {
        assert_eq!(wait(ticket).expect("the drive is back").tokens, alone(&judge, &tokenizer, request));
    }
}

#[test]
fn requests_that_cannot_be_are_refused_by_name() {
    let (_, model, _, tokenizer) = demo();
    for (parallel, answers_share, says) in
        [(0, 0.5, "0 requests"), (PARALLEL + 3, 0.5, "7 requests at once"), (1, 0.95, "0.95 of the time")]
    {
        let options = SchedulerOptions { parallel, answers_share };
        let error = Scheduler::start(model.clone(), tokenizer.clone(), options).map(|_| ()).expect_err(says);
        assert!(error.message().contains(says), "{error}");
    }
    let scheduler = Scheduler::start(model.clone(), tokenizer, TOGETHER).expect("starts");
    let refused = |request: Request| scheduler.submit(request).map(|_| ()).expect_err("cannot be").kind();
    let good = request(&model, 1, 5, 3);
    assert_eq!(refused(Request { prompt: Vec::new(), ..good.clone() }), ErrorKind::InvalidRequest);
    assert_eq!(refused(Request { prompt: vec![u32::MAX], ..good.clone() }), ErrorKind::InvalidRequest);
    assert_eq!(refused(request(&model, 1, 161, 3)), ErrorKind::ContextFull);
    let sampling = SampleParams { top_p: 2.0, ..SampleParams::default() };
    let options = GenerateOptions { sampling, ..good.options.clone() };
    assert_eq!(refused(Request { options, ..good.clone() }), ErrorKind::InvalidRequest);
    let late = scheduler.submit(Request { deadline: Some(Instant::now()), ..good.clone() }).expect("queues");
    assert_eq!(wait(&late).expect("no error").finish, FinishReason::Cancelled);
    assert_eq!(wait(&scheduler.submit(good).expect("queues")).expect("answers").tokens.len(), 3);
}

/// Reads nothing after so many events until it is let go.
struct Slow {
    heard: AtomicUsize,
    reads: AtomicBool,
    events: Mutex<Sender<RequestEvent>>,
}

impl Listener for Slow {
    fn hear(&self, event: RequestEvent) -> bool {
        self.heard.fetch_add(1, Ordering::SeqCst);
        self.events.lock().expect("whole").send(event).is_ok()
    }

    fn is_behind(&self) -> bool {
        !self.reads.load(Ordering::SeqCst) && self.heard.load(Ordering::SeqCst) >= 10
    }
}

#[test]
fn a_slow_listener_holds_its_own_answer_alone() {
    let (_, model, judge, tokenizer) = demo();
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
    let slow = || {
        let (events, heard) = channel();
        let (heard_so_far, reads) = (AtomicUsize::new(0), AtomicBool::new(false));
        (Arc::new(Slow { heard: heard_so_far, reads, events: Mutex::new(events) }), heard)
    };
    let (held, held_events) = slow();
    let (lost, lost_events) = slow();
    let requests = [request(&model, 0, 9, 60), request(&model, 1, 9, 60)];
    let held_handle = scheduler.submit_to(requests[0].clone(), held.clone()).expect("queues");
    let lost_handle = scheduler.submit_to(requests[1].clone(), lost.clone()).expect("queues");
    // Longer than the others would be.
    let other = request(&model, 2, 9, 120);
    let answer = wait(&scheduler.submit(other.clone()).expect("queues")).expect("answers");
    assert_eq!(answer.tokens, alone(&judge, &tokenizer, &other));
    // Nobody but they is there, and the scheduler sleeps: to be given up and to be read wakes it.
    assert!([&held, &lost].iter().all(|of| (10..30).contains(&of.heard.load(Ordering::SeqCst))));
    lost_handle.cancel();
    held.reads.store(true, Ordering::SeqCst);
    held_handle.wake();
    let end = |events: Receiver<RequestEvent>| {
        events.into_iter().find_map(|event| match event {
            RequestEvent::Ended(end) => Some(end.expect("ends")),
            _ => None,
        })
    };
    let (held, lost) = (end(held_events).expect("an end"), end(lost_events).expect("an end"));
    assert_eq!(held.tokens, alone(&judge, &tokenizer, &requests[0]));
    assert_eq!(lost.finish, FinishReason::Cancelled);
    assert_eq!(lost.tokens, alone(&judge, &tokenizer, &requests[1])[..lost.tokens.len()]);
}

#[test]
fn what_is_not_cached_uses_nothing_and_leaves_nothing() {
    let (_, model, _, tokenizer) = demo();
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
    let reused = |cache: bool| {
        let asked = Request { cache, borders: vec![60], ..request(&model, 0, 90, 3) };
        let ticket = scheduler.submit(asked).expect("queues");
        let begun = ticket.next_event();
        let Some(RequestEvent::Begun { prompt_tokens: 90, reused_tokens, .. }) = begun else {
            panic!("{begun:?}")
        };
        assert_eq!(wait(&ticket).expect("answers").reused_tokens, reused_tokens);
        reused_tokens
    };
    assert_eq!((reused(false), reused(true)), (0, 0));
    assert_eq!((reused(true), reused(false)), (60, 0));
}
