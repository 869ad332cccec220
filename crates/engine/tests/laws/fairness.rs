//! Who is served when: clients among themselves, and short prompts beside long ones.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use tidemill_engine::Model;
use tidemill_engine::generate::Generated;
use tidemill_engine::scheduler::{Listener, Request, RequestEvent, Scheduler, SchedulerOptions};

use super::scheduler::{TOGETHER, alone, demo, demo_in_chunks, request, wait};
use super::tools::tokens;

/// Writes down who was begun, whose answer began, and who ended.
struct Scribe {
    name: usize,
    begun: Arc<Mutex<Vec<usize>>>,
    answers: Arc<Mutex<Vec<usize>>>,
    ended: Sender<(usize, Generated)>,
}

impl Listener for Scribe {
    fn hear(&self, event: RequestEvent) -> bool {
        let note = |list: &Mutex<Vec<usize>>| {
            let list = &mut *list.lock().expect("whole");
            if !list.contains(&self.name) {
                list.push(self.name);
            }
        };
        match event {
            RequestEvent::Begun { .. } => note(&self.begun),
            RequestEvent::Prompt { .. } => {}
            RequestEvent::Reply(_) => note(&self.answers),
            RequestEvent::Ended(end) => self.ended.send((self.name, end.expect("ends"))).expect("heard"),
        }
        true
    }
}

/// In which order requests were begun and their answers began; each has the tokens that it has alone.
fn orders(parallel: usize, requests: &dyn Fn(&Model) -> Vec<Request>) -> (Vec<usize>, Vec<usize>) {
    let (_disk, model, judge, tokenizer) = demo();
    let options = SchedulerOptions { parallel, ..TOGETHER };
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), options).expect("starts");
    let (ended, ends) = channel();
    let (begun, answers) = (Arc::default(), Arc::default());
    let requests = requests(&model);
    for (name, request) in requests.iter().enumerate() {
        let scribe =
            Scribe { name, begun: Arc::clone(&begun), answers: Arc::clone(&answers), ended: ended.clone() };
        let _ = scheduler.submit_to(request.clone(), Arc::new(scribe)).expect("queues");
    }
    drop(ended);
    for (name, answer) in ends.iter().take(requests.len()) {
        assert_eq!(answer.tokens, alone(&judge, &tokenizer, &requests[name]), "{name}");
    }
    let list = |of: Arc<Mutex<Vec<usize>>>| of.lock().expect("whole").clone();
    (list(begun), list(answers))
}

#[test]
fn a_client_with_many_requests_keeps_no_other_from_its_turn() {
    for (parallel, first) in [(1, 1), (2, 2)] {
        // The first client's requests keep all places while the others come.
        let (begun, _) = orders(parallel, &|model| {
            let long = (0..parallel as u64).map(|seed| Request { client: 7, ..request(model, seed, 60, 90) });
            let many = (2..5).map(|seed| Request { client: 7, ..request(model, seed, 20, 6) });
            let other = Request { client: 8, ..request(model, 5, 20, 6) };
            long.chain(many).chain([other]).collect()
        });
        assert_eq!(begun.len(), parallel + 4);
        assert!(begun[..=first].contains(&(parallel + 3)), "the other client's turn is the next: {begun:?}");
    }
}

#[test]
fn a_short_prompt_waits_for_one_chunk_of_a_long_one() {
    // Chunks have 32 tokens: the long prompt has five of them.
    let (begun, answers) = orders(2, &|model| vec![request(model, 0, 150, 4), request(model, 1, 20, 4)]);
    assert_eq!((begun, answers), (vec![0, 1], vec![1, 0]));
}

/// Asks for more once a step is under way.
struct Late {
    scribe: Scribe,
    requests: Mutex<Vec<(Request, Scribe)>>,
    scheduler: Arc<OnceLock<Scheduler>>,
}

impl Listener for Late {
    fn hear(&self, event: RequestEvent) -> bool {
        if let (RequestEvent::Prompt { .. }, Some(scheduler)) = (&event, self.scheduler.get()) {
            for (request, scribe) in self.requests.lock().expect("whole").drain(..) {
                let _ = scheduler.submit_to(request, Arc::new(scribe)).expect("queues");
            }
        }
        self.scribe.hear(event)
    }
}

#[test]
fn a_short_prompt_is_computed_between_the_layers_of_a_long_one() {
    // A chunk of 150 tokens leaves room for 18 between its layers.
    let (_disk, model, judge, tokenizer) = demo_in_chunks(150);
    let (ended, ends) = channel();
    let (begun, answers) = (Arc::default(), Arc::default());
    let scribe = |name| Scribe {
        name,
        begun: Arc::clone(&begun),
        answers: Arc::clone(&answers),
        ended: ended.clone(),
    };
    let long = Request { borders: vec![40, 90], ..request(&model, 0, 140, 5) };
    let short = Request { borders: vec![5], ..request(&model, 1, 15, 5) };
    // The same beginning: what of it is kept need not be computed, and the rest is short.
    let kept = Request { borders: vec![60], ..request(&model, 7, 60, 3) };
    let mut more = kept.prompt.clone();
    more.extend(tokens(&model, 8, 12));
    let goes_on = Request { prompt: more, ..request(&model, 3, 1, 5) };
    let too_long = request(&model, 2, 40, 5);
    let scheduler = Arc::new(OnceLock::new());
    let started = Scheduler::start(model.clone(), tokenizer.clone(), TOGETHER).expect("starts");
    wait(&started.submit(kept).expect("queues")).expect("answers");
    assert!(scheduler.set(started).is_ok());
    let requests = [long.clone(), short.clone(), too_long.clone(), goes_on.clone()];
    let late = vec![(short, scribe(1)), (too_long, scribe(2)), (goes_on, scribe(3))];
    let late = Late { scribe: scribe(0), requests: Mutex::new(late), scheduler: scheduler.clone() };
    let running = scheduler.get().expect("set").submit_to(long, Arc::new(late)).expect("queues");
    for (name, answer) in ends.iter().take(4) {
        assert_eq!(answer.tokens, alone(&judge, &tokenizer, &requests[name]), "{name}");
        assert!(name != 3 || answer.reused_tokens == 60, "{}", answer.reused_tokens);
    }
    drop(running);
    let list = |of: &Mutex<Vec<usize>>| of.lock().expect("whole").clone();
    assert_eq!((list(&begun), list(&answers)), (vec![0, 1, 3, 2], vec![1, 3, 0, 2]));
}
