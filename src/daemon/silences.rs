//! `assayd silence` where no daemon runs.

use crate::{config::Settings, control::SilenceOrder, store::Store, web::silences::obey};

/// False where there is no such silence to end. The caller holds the state folder's lock.
///
/// # Errors
/// When the store cannot be opened.
pub async fn silence(settings: &Settings, order: &SilenceOrder) -> anyhow::Result<bool> {
    let (store, writer) = Store::open(&settings.state).await?;
    let work = async {
        let done = obey(&store, order).await;
        // An error means that it is closed already.
        let _ = store.close().await;
        done
    };
    let (done, ()) = tokio::join!(work, writer.run());
    Ok(done?)
}
