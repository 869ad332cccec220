//! How urgent this crate's threads are, to a system that asks.
//!
//! Apple's systems choose between fast and efficient cores, clocks and I/O priority by a thread's quality-of-service
//! class, and give a new thread of a library one that says nothing. Source: `pthread/qos.h`.

/// Says that a person waits for what the calling thread does. A refusal costs speed only.
pub(crate) fn raise() {
    #[cfg(target_vendor = "apple")]
    // SAFETY: changes the class of the calling thread alone, and takes no memory.
    let _ = unsafe { libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INITIATED, 0) };
}
