//! The relay's own threads, and hearing of their end from async code.

use std::io;
use std::thread;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Threads that were started, by name.
#[derive(Default)]
pub(crate) struct Threads {
    /// One task per thread; it ends when the thread does, by panic too.
    running: JoinSet<&'static str>,
}

impl Threads {
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (alive, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _alive = alive;
            work();
        })?;
        self.running.spawn(async move {
            // The sender is dropped, never used: this is how the end shows.
            let _ = ended.await;
            name
        });
        Ok(())
    }

    /// The name of the next thread to end; `None` if none is left.
    pub(crate) async fn next_ended(&mut self) -> Option<&'static str> {
        self.running.join_next().await?.ok()
    }

    /// Waits for all of them.
    pub(crate) async fn all_ended(&mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_end_too() {
        let mut threads = Threads::default();
        threads.spawn("panics", || panic!("as the test wants")).unwrap();
        assert_eq!(threads.next_ended().await, Some("panics"));
        assert_eq!(threads.next_ended().await, None);
    }
}
