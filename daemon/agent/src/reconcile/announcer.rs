//! Writes annotations in the background, so that the reconciler waits neither for a disk nor for an
//! API server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hauberk_source::{Source, SourceError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{FIRST_PAUSE, LONGEST_PAUSE};

/// A write that takes longer is reported.
const LATE: Duration = Duration::from_secs(5);

/// One write at a time, so that a slow older write never ends after a newer one.
pub(super) struct Announcer {
    source: Arc<dyn Source>,
    written: BTreeMap<String, String>,
    /// Written in this round; the object may not have been read again since.
    fresh: BTreeSet<String>,
    under_way: Option<Write>,
    pause: Duration,
}

struct Write {
    annotations: BTreeMap<String, String>,
    since: Instant,
    end: JoinHandle<Result<(), SourceError>>,
}

impl Announcer {
    /// Writes through `source`. Nothing is written yet.
    pub(super) fn new(source: Arc<dyn Source>) -> Announcer {
        Announcer { source, written: BTreeMap::new(), fresh: BTreeSet::new(), under_way: None, pause: FIRST_PAUSE }
    }

    /// From now on an annotation counts as there only if the object has it or it is written after
    /// this call.
    pub(super) fn begin_round(&mut self) {
        self.fresh.clear();
    }

    /// Starts to write these annotations, unless they are there or another write is under way; the
    /// caller asks again when that one ends. `held` says whether the object, as last read, has an
    /// annotation. Returns whether all are there.
    pub(super) fn announce(
        &mut self,
        annotations: BTreeMap<String, String>,
        held: impl Fn(&str, &String) -> bool,
    ) -> bool {
        let is_there = |(name, value): (&String, &String)| {
            self.written.get(name) == Some(value) && (self.fresh.contains(name) || held(name, value))
        };
        if annotations.iter().all(is_there) {
            return true;
        }
        if self.under_way.is_none() {
            let values = annotations.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
            let end = tokio::spawn(Arc::clone(&self.source).annotate(values));
            self.under_way = Some(Write { annotations, since: Instant::now(), end });
        }
        false
    }

    /// Waits for the end of the write under way; without one, forever. The future may be dropped
    /// and the method called again.
    pub(super) async fn end(&mut self) -> Result<(), SourceError> {
        let Some(write) = &mut self.under_way else { return std::future::pending().await };
        let end = (&mut write.end).await.unwrap_or_else(|error| Err(SourceError::Thread(std::io::Error::other(error))));
        if let Some(write) = self.under_way.take()
            && end.is_ok()
        {
            self.pause = FIRST_PAUSE;
            self.fresh.extend(write.annotations.keys().cloned());
            self.written.extend(write.annotations);
        }
        end
    }

    /// Whether a write is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether the write under way takes long.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.under_way.as_ref().is_some_and(|write| now.saturating_duration_since(write.since) >= LATE)
    }

    /// How long to wait after a failure; longer each time.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use hauberk_api::SourceStatus;
    use hauberk_source::Batch;
    use tokio::sync::{Semaphore, mpsc, watch};

    use super::*;

    /// Records what is to be written, and answers when the test allows it.
    #[derive(Default)]
    struct Slow {
        asked: Mutex<Vec<BTreeMap<String, Option<String>>>>,
        answers: Option<Semaphore>,
        broken: bool,
    }

    impl Source for Slow {
        fn run(
            self: Arc<Self>,
            _: mpsc::Sender<Batch>,
            _: watch::Receiver<bool>,
        ) -> BoxFuture<'static, Result<(), SourceError>> {
            Box::pin(std::future::pending())
        }

        fn status(&self) -> SourceStatus {
            unreachable!()
        }

        fn annotate(
            self: Arc<Self>,
            annotations: BTreeMap<String, Option<String>>,
        ) -> BoxFuture<'static, Result<(), SourceError>> {
            Box::pin(async move {
                self.asked.lock().unwrap().push(annotations);
                if let Some(answers) = &self.answers {
                    answers.acquire().await.unwrap().forget();
                }
                if self.broken { Err(SourceError::Thread(std::io::Error::other("broken"))) } else { Ok(()) }
            })
        }
    }

    fn keys(value: &str) -> BTreeMap<String, String> {
        [("keys".to_owned(), value.to_owned())].into()
    }

    fn nothing(_: &str, _: &String) -> bool {
        false
    }

    #[tokio::test]
    async fn a_source_that_does_not_answer_holds_up_nobody_and_gets_the_newest_last() {
        let source = Arc::new(Slow { answers: Some(Semaphore::new(0)), ..Slow::default() });
        let mut announcer = Announcer::new(source.clone());
        assert!(!announcer.announce(keys("1"), nothing));
        assert!(announcer.end().now_or_never().is_none());
        let begun = Instant::now();
        assert!(!announcer.is_late(begun));
        assert!(announcer.is_late(begun + LATE));
        // Later calls wait for its end; then the newest value is written.
        assert!(!announcer.announce(keys("2"), nothing));
        assert!(!announcer.announce(keys("3"), nothing));
        source.answers.as_ref().unwrap().add_permits(1);
        announcer.end().await.unwrap();
        assert!(!announcer.is_late(begun + LATE) && !announcer.is_busy());
        assert!(!announcer.announce(keys("3"), nothing));
        source.answers.as_ref().unwrap().add_permits(1);
        announcer.end().await.unwrap();
        let asked: Vec<_> = source.asked.lock().unwrap().iter().map(|one| one["keys"].clone().unwrap()).collect();
        assert_eq!(asked, ["1", "3"]);
    }

    #[tokio::test]
    async fn what_was_written_is_there_until_the_next_round_reads_the_object() {
        let source = Arc::new(Slow::default());
        let mut announcer = Announcer::new(source.clone());
        announcer.begin_round();
        assert!(!announcer.announce(keys("1"), nothing));
        announcer.end().await.unwrap();
        assert!(announcer.announce(keys("1"), nothing));
        announcer.begin_round();
        assert!(announcer.announce(keys("1"), |_, value| value == "1"));
        assert!(!announcer.announce(keys("1"), nothing), "somebody took it away");
        announcer.end().await.unwrap();
        assert_eq!(source.asked.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_write_that_failed_is_not_there_and_pauses_grow() {
        let mut announcer = Announcer::new(Arc::new(Slow { broken: true, ..Slow::default() }));
        assert!(!announcer.announce(keys("1"), nothing));
        assert!(announcer.end().await.is_err());
        assert!(!announcer.announce(keys("1"), |_, _| true));
        let pauses: Vec<_> = (0..20).map(|_| announcer.pause()).collect();
        assert_eq!((pauses[0], pauses[1], pauses[19]), (FIRST_PAUSE, FIRST_PAUSE * 2, LONGEST_PAUSE));
    }
}
