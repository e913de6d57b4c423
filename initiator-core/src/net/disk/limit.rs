//! Time limits of a disk's operations.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use iscsi_memory::Buf;

use super::Disk;
use crate::error::Error;

impl Disk {
    /// A handle on the same disk whose operations each end within `limit`, from the call on, whatever they wait for: a
    /// place among the commands, the target's window, a new connection, the answer. The limit is for the whole
    /// operation, also where it goes out in several commands. What is overdue ends with [`Error::TimedOut`], and is
    /// given up as if its future had been dropped (see [`Disk`]): nothing of a write lands after a later one.
    ///
    /// The limit is kept to within a millisecond, as far as the runtime of
    /// [`Session::connect`](crate::Session::connect) and that of the caller have time.
    /// [`Timeouts::command`](crate::Timeouts) holds beside it, for each command.
    ///
    /// ```no_run
    /// # async fn example(disk: initiator_core::Disk) -> Result<(), initiator_core::Error> {
    /// use std::time::Duration;
    /// let hasty = disk.with_timeout(Duration::from_millis(200));
    /// if let Err(initiator_core::Error::TimedOut { .. }) = hasty.write(0, &[1; 4096]).await {
    ///     // The first write may take place or not, but never after this one.
    ///     disk.write(0, &[2; 4096]).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self.clone() }
    }

    /// The limit of each operation of this handle, if it has one.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.limit
    }

    /// An operation within the handle's limit; dropping it is what gives it up.
    pub(super) async fn within<T>(&self, operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let Some(after) = self.limit else { return operation.await };
        // In a task of the session's runtime, so that the caller needs none. When that runtime ends, so does the
        // operation, by itself; the clock's end then says nothing.
        let mut clock = Clock(self.session.runtime().spawn(async move { tokio::time::sleep(after).await }));
        let mut operation = pin!(operation);
        match select(operation.as_mut(), &mut clock.0).await {
            Either::Left((result, _)) => result,
            Either::Right((Ok(()), _)) => Err(Error::TimedOut { lun: self.lun(), after }),
            Either::Right((Err(_), _)) => operation.await,
        }
    }

    /// The same for an operation that has a buffer to give back: one that is overdue leaves it to the session, and an
    /// empty one comes back.
    pub(super) async fn within_buf(
        &self,
        operation: impl Future<Output = (Buf, Result<(), Error>)>,
    ) -> (Buf, Result<(), Error>) {
        match self.within(async { Ok(operation.await) }).await {
            Ok(done) => done,
            Err(error) => (Buf::zeroed(0), Err(error)),
        }
    }
}

/// Ends with its operation.
struct Clock(tokio::task::JoinHandle<()>);

impl Drop for Clock {
    fn drop(&mut self) {
        self.0.abort();
    }
}
