use super::{Failure, Overrides, logs, settings};
use crate::{
    daemon,
    store::lock::{Holder, StateLock},
};

pub(super) fn run(overrides: &Overrides) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let _guard = logs::start(&settings.log)?;
    let listen = settings.listen.map(|address| address.to_string());
    let me = Holder { pid: std::process::id(), command: "assayd run".to_owned(), listen };
    let _lock = StateLock::take(&settings.state, &me).map_err(|error| Failure::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("assayd-worker").build()?;
    runtime.block_on(daemon::run(settings))?;
    Ok(())
}
