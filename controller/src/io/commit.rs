//! Group commit for the catalog: changes that arrive together share one transaction and one flush.

use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use crate::catalog::{Catalog, CatalogError, Change};

type Work = Box<dyn Fn(&Change<'_>) -> Result<(), CatalogError> + Send>;

struct Item {
    work: Work,
    done: oneshot::Sender<Result<(), CatalogError>>,
}

/// Changes in one transaction at the most.
const TOGETHER_MAX: usize = 64;

/// The queue to the one thread that changes the catalog in bulk.
#[derive(Clone)]
pub struct Committer(mpsc::Sender<Item>);

impl Committer {
    /// Start it.
    #[must_use]
    pub fn start(catalog: Arc<Catalog>) -> Self {
        let (send, receive) = mpsc::channel::<Item>();
        let work = move || {
            while let Ok(first) = receive.recv() {
                let items = std::iter::once(first).chain(receive.try_iter().take(TOGETHER_MAX - 1)).collect();
                commit(&catalog, items);
            }
        };
        std::thread::Builder::new().name("catalog".into()).spawn(work).expect("a thread can be started");
        Self(send)
    }

    /// Carry out a change; when this returns it is durable.
    ///
    /// # Errors
    /// What the change says, or the database.
    pub async fn change(
        &self,
        work: impl Fn(&Change<'_>) -> Result<(), CatalogError> + Send + 'static,
    ) -> Result<(), CatalogError> {
        let (done, result) = oneshot::channel();
        let stopped = || CatalogError::Conflict("the controller is stopping".into());
        self.0.send(Item { work: Box::new(work), done }).map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }
}

fn commit(catalog: &Catalog, items: Vec<Item>) {
    let together = catalog.change(|change| items.iter().try_for_each(|item| (item.work)(change)));
    match together {
        Ok(()) => items.into_iter().for_each(|item| drop(item.done.send(Ok(())))),
        // One of them failed and took the others along: each for itself.
        Err(_) => items.into_iter().for_each(|item| drop(item.done.send(catalog.change(&item.work)))),
    }
}
