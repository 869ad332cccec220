//! Metal's texts, run on this machine's processor: a fibre a thread, simdgroups of 32, threadgroup memory that begins as
//! NaN. Wrong: a barrier that not all threads reach, an access out of bounds, two accesses that no barrier parts.

use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use files::{Error, ErrorKind};
use tidemill_kernels::gpu::{Dispatch, StandIn};

use super::clang::{Clang, made, rewritten};
use super::texts::Shader;

/// How a text is compiled and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Math {
    /// As IEEE 754 has it; each access of memory is checked.
    Exact,
    /// Fast math, as is Metal's default: sums in any order, products by inverses, no NaN and no infinity.
    Fast,
    /// The same, with functions as far off as Metal's specification permits.
    Worst,
}

impl Math {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Exact => &["-O1", "-ffp-contract=off", "-fsanitize=thread"],
            Self::Fast => &["-O2", "-ffast-math"],
            Self::Worst => &["-O2", "-ffast-math", "-DWORST"],
        }
    }
}

const BUFFERS_MAX: usize = 32;
const SHARED_MAX: usize = 16;
const STACK_BYTES: usize = 64 << 10;
const THREADS_MAX: usize = 1024;
/// Between two buffers.
const GAP_BYTES: usize = 4096;
/// A `Shadow` of run.h, one for two bytes.
const SHADOW_BYTES: usize = 20;

/// The `Call` of run.h.
#[repr(C)]
struct Call {
    groups: [u32; 3],
    descending: u32,
    flushes: u32,
    buffers: [*mut u8; BUFFERS_MAX],
    buffer_bytes: [u64; BUFFERS_MAX],
    shared: [*mut u8; SHARED_MAX],
    shared_bytes: [u64; SHARED_MAX],
    stacks: *mut u8,
    stack_bytes: u64,
    arena: *mut u8,
    arena_bytes: u64,
    shadows: *mut u8,
    message: [u8; 256],
}

/// Zeroed memory, which the system gives page by page.
struct Memory {
    at: *mut u8,
    layout: Layout,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(64), 64).unwrap();
        // SAFETY: the layout is not empty.
        let at = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!at.is_null(), "{bytes} bytes");
        Self { at, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.at, self.layout) };
    }
}

/// A compiled text.
pub struct Library {
    loaded: libloading::Library,
    /// Slots of its buffers, and the bytes of its threadgroup memory.
    slots: Vec<usize>,
    shared: Vec<usize>,
    math: Math,
    /// A library has one machine.
    runs: Mutex<u32>,
}

/// What the arguments of the kernel become in C++.
struct Glue {
    threads: u32,
    arguments: Vec<String>,
    slots: Vec<usize>,
    shared: Vec<String>,
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

fn glue(text: &str) -> Option<Glue> {
    let threads = between(text, "max_total_threads_per_threadgroup(", ")")?.parse().ok()?;
    let mut glue = Glue { threads, arguments: Vec::new(), slots: Vec::new(), shared: Vec::new() };
    for line in between(text, "kernel void main_(", "\n) {")?.lines() {
        let line = line.trim().trim_start_matches(',').trim();
        if line.is_empty() {
            continue;
        }
        let mut words = line.split_whitespace();
        let (space, kind) = (words.next()?, words.next()?.trim_end_matches('&'));
        let argument = if space == "threadgroup" {
            glue.shared.push(kind.to_string());
            format!("*({kind} *)shim::shim_machine.call->shared[{}]", glue.shared.len() - 1)
        } else if let Some(slot) = between(line, "[[buffer(", ")") {
            glue.slots.push(slot.parse().ok()?);
            format!("*({kind} *)shim::shim_machine.call->buffers[{slot}]")
        } else {
            match between(line, "[[", "]]")? {
                "threadgroup_position_in_grid" => "shim_position".into(),
                "thread_index_in_threadgroup" => "t".into(),
                "simdgroup_index_in_threadgroup" => "t / 32".into(),
                "thread_index_in_simdgroup" => "t % 32".into(),
                "simdgroups_per_threadgroup" => format!("{}u", threads.div_ceil(32)),
                "threads_per_simdgroup" => "32u".into(),
                _ => return None,
            }
        };
        glue.arguments.push(argument);
    }
    Some(glue)
}

impl Library {
    /// Compiles a text, or takes what an earlier run made of the same.
    ///
    /// # Errors
    /// What clang says.
    pub fn new(clang: &Clang, text: &str, math: Math) -> Result<Self, String> {
        let glue = glue(text).ok_or("the kernel's arguments are not what naga writes")?;
        let mut source = rewritten(text);
        let sizes: Vec<String> = glue.shared.iter().map(|kind| format!("sizeof({kind})")).collect();
        let arguments = glue.arguments.join(", ");
        // Writing to a String cannot fail.
        let _ = write!(
            source,
            "\nstatic metal::uint3 shim_position;\nstatic void one(uint t) {{ main_({arguments}); }}\n\
             extern \"C\" unsigned long shim_shared[] = {{{} 0}};\n\
             extern \"C\" int shim_run(shim::Call *call) {{\n    \
             return shim::run_groups(call, {}, one, (uint *)&shim_position);\n}}\n",
            sizes.iter().map(|size| format!("{size}, ")).collect::<String>(),
            glue.threads,
        );
        let header = [include_str!("metal_stdlib"), include_str!("run.h")];
        let mut hasher = DefaultHasher::new();
        (&source, header, math.flags()).hash(&mut hasher);
        let file = made("metal").join(format!("{:016x}.so", hasher.finish()));
        if !file.exists() {
            static MADE: AtomicUsize = AtomicUsize::new(0);
            let unique = format!("{}-{}.tmp", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
            let fresh = file.with_extension(unique);
            clang.compile(&source, math.flags(), &fresh)?;
            std::fs::rename(&fresh, &file).map_err(|e| e.to_string())?;
        }
        // SAFETY: the library is ours; loading it runs nothing but the empty start of the sanitizer.
        let library = unsafe { libloading::Library::new(&file) }.map_err(|e| e.to_string())?;
        // SAFETY: the symbol is an array of as many sizes as the text has threadgroup variables.
        let shared = unsafe {
            let sizes = library.get::<*const u64>(b"shim_shared").map_err(|e| e.to_string())?;
            (0..glue.shared.len()).map(|i| *(*sizes).add(i) as usize).collect()
        };
        Ok(Self { loaded: library, slots: glue.slots, shared, math, runs: Mutex::new(0) })
    }

    /// Runs a dispatch: `buffers` are the immediates and then the bindings, by slot.
    ///
    /// # Errors
    /// What the text does wrong.
    pub fn run(&self, groups: [u32; 3], buffers: &mut [&mut [u8]]) -> Result<(), String> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        *runs += 1;
        let sizes = buffers.iter().map(|b| b.len()).chain(self.shared.iter().copied());
        let arena_bytes =
            sizes.map(|bytes| bytes.next_multiple_of(64) + GAP_BYTES).sum::<usize>() + GAP_BYTES;
        let (arena, stacks) = (Memory::new(arena_bytes), Memory::new(THREADS_MAX * STACK_BYTES));
        let shadows = match self.math {
            Math::Exact => arena_bytes / 2 * SHADOW_BYTES,
            Math::Fast | Math::Worst => 0,
        };
        let shadows = Memory::new(shadows);
        let mut call = Call {
            groups,
            descending: u32::from(self.math == Math::Fast || (*runs).is_multiple_of(2)),
            flushes: u32::from(self.math != Math::Exact),
            buffers: [std::ptr::null_mut(); BUFFERS_MAX],
            buffer_bytes: [0; BUFFERS_MAX],
            shared: [std::ptr::null_mut(); SHARED_MAX],
            shared_bytes: [0; SHARED_MAX],
            stacks: stacks.at,
            stack_bytes: STACK_BYTES as u64,
            arena: arena.at,
            arena_bytes: arena_bytes as u64,
            shadows: shadows.at,
            message: [0; 256],
        };
        let mut at = GAP_BYTES;
        let mut place = |bytes: usize| {
            let start = at;
            at += bytes.next_multiple_of(64) + GAP_BYTES;
            // SAFETY: the arena has room for all buffers and their gaps.
            unsafe { arena.at.add(start) }
        };
        for &slot in &self.slots {
            let Some(bytes) = buffers.get(slot) else { continue };
            call.buffers[slot] = place(bytes.len());
            call.buffer_bytes[slot] = bytes.len() as u64;
            // SAFETY: `place` made room for them.
            unsafe { call.buffers[slot].copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        for (i, &bytes) in self.shared.iter().enumerate() {
            (call.shared[i], call.shared_bytes[i]) = (place(bytes), bytes as u64);
        }
        // SAFETY: the symbol is a function of this type, which touches nothing but what `call` names while it runs.
        let failed = unsafe {
            let run = self.loaded.get::<unsafe extern "C" fn(*mut Call) -> i32>(b"shim_run");
            run.map_err(|e| e.to_string())?(&mut call)
        };
        if failed != 0 {
            let end = call.message.iter().position(|&b| b == 0).unwrap_or(0);
            return Err(String::from_utf8_lossy(&call.message[..end]).into_owned());
        }
        for &slot in &self.slots {
            let Some(bytes) = buffers.get_mut(slot) else { continue };
            // SAFETY: as above.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(call.buffers[slot], bytes.len()) };
        }
        Ok(())
    }
}

/// Removes libraries that nobody made or used for a day.
fn forget_old() {
    const DAY: std::time::Duration = std::time::Duration::from_hours(24);
    for file in std::fs::read_dir(made("metal")).unwrap().flatten() {
        let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|made| made.elapsed().ok());
        if age.is_some_and(|age| age > DAY) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

type Change = dyn Fn(&Shader, String) -> String + Send + Sync;

/// What a Mac would be: compiles each text that is dispatched, and runs it.
pub struct Mac {
    clang: Clang,
    math: Math,
    has_matrix_instructions: bool,
    libraries: Mutex<HashMap<Shader, Arc<Library>>>,
    /// Dispatches of each shader.
    pub ran: Arc<Mutex<BTreeMap<String, usize>>>,
    /// Changes texts before they are compiled: plants what must be found.
    change: Option<Box<Change>>,
}

impl Mac {
    pub fn new(clang: Clang, math: Math, has_matrix_instructions: bool) -> Self {
        forget_old();
        let (libraries, ran) = Default::default();
        Self { clang, math, has_matrix_instructions, libraries, ran, change: None }
    }

    pub fn with_change(mut self, change: impl Fn(&Shader, String) -> String + Send + Sync + 'static) -> Self {
        self.change = Some(Box::new(change));
        self
    }

    fn compiled(&self, shader: &Shader) -> Result<Arc<Library>, String> {
        let known = self.libraries.lock().unwrap_or_else(PoisonError::into_inner).get(shader).cloned();
        if let Some(library) = known {
            return Ok(library);
        }
        let mut text = shader.msl(&shader.parse(), (3, 2));
        if let Some(change) = &self.change {
            text = change(shader, text);
        }
        let library = Arc::new(Library::new(&self.clang, &text, self.math)?);
        self.libraries.lock().unwrap_or_else(PoisonError::into_inner).insert(*shader, library.clone());
        Ok(library)
    }
}

impl StandIn for Mac {
    fn has_matrix_instructions(&self) -> bool {
        self.has_matrix_instructions
    }

    fn run(&self, dispatch: &mut Dispatch<'_>) -> files::Result<()> {
        let shader = Shader { variant: dispatch.variant, subgroups: dispatch.subgroups };
        let wrong = |what: String| Error::new(ErrorKind::Device, format!("{}: {what}", shader.name()));
        let library = self.compiled(&shader).map_err(wrong)?;
        // As many bytes of parameters as a dispatch has.
        let mut params = [0u8; 128];
        let bytes = dispatch.params.iter().flat_map(|word| word.to_le_bytes());
        params.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        let mut buffers: Vec<&mut [u8]> = vec![&mut params];
        buffers.extend(dispatch.buffers.iter_mut().map(Vec::as_mut_slice));
        library.run(dispatch.groups, &mut buffers).map_err(wrong)?;
        *self.ran.lock().unwrap_or_else(PoisonError::into_inner).entry(shader.name()).or_default() += 1;
        Ok(())
    }
}
