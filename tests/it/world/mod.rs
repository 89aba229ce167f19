//! Stand-ins for the services that assayd talks to, on loopback ports: Langfuse (v3 and v4), OpenAI and Anthropic at
//! once, Slack. Each records what it was sent, can be told to fail, and reports every request on the [`Pulse`], so that
//! a test waits for what it expects instead of for a time. What assayd sends is held against the services' own rules;
//! a breach fails the test when its world ends.

pub mod faults;
pub mod history;
pub mod langfuse;
pub mod llm;
pub mod postgres;
pub mod schema;
pub mod slack;

use std::sync::{Arc, Mutex};

use axum::{Router, extract::DefaultBodyLimit};
pub use faults::Fault;
pub use langfuse::{Child, Langfuse, Mode, NewTrace, WEBHOOK_SECRET, prompt_event, signature};
pub use llm::{Llm, Style};
pub use postgres::{Gate, Postgres};
pub use slack::Slack;
use tokio::sync::watch;

/// Beats whenever something happened anywhere in the world.
#[derive(Clone)]
pub struct Pulse(Arc<watch::Sender<u64>>);

impl Pulse {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub fn beat(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    pub fn listen(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// Breaches of a service's rules by what it was sent.
#[derive(Clone, Default)]
pub struct Breaches(Arc<Mutex<Vec<String>>>);

impl Breaches {
    pub fn push(&self, breach: impl Into<String>) {
        self.0.lock().unwrap().push(breach.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

pub struct World {
    pub langfuse: Arc<Langfuse>,
    pub llm: Arc<Llm>,
    pub slack: Arc<Slack>,
    pub pulse: Pulse,
    breaches: Breaches,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl World {
    pub async fn start(mode: Mode) -> Self {
        let (pulse, breaches) = (Pulse::new(), Breaches::default());
        let mut servers = Vec::new();
        let (listener, url) = bind().await;
        let langfuse = Arc::new(Langfuse::new(mode, url, pulse.clone(), breaches.clone()));
        servers.push(serve(listener, langfuse::router(langfuse.clone())));
        let (listener, url) = bind().await;
        let llm = Arc::new(Llm::new(url, pulse.clone()));
        servers.push(serve(listener, llm::router(llm.clone())));
        let (listener, url) = bind().await;
        let slack = Arc::new(Slack::new(url, pulse.clone(), breaches.clone()));
        servers.push(serve(listener, slack::router(slack.clone())));
        Self { langfuse, llm, slack, pulse, breaches, servers }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
        let breaches = self.breaches.take();
        // A test that fails for its own reason says that first.
        if !std::thread::panicking() {
            assert!(breaches.is_empty(), "what was sent breaks the services' rules:\n{}", breaches.join("\n"));
        }
    }
}

async fn bind() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn serve(listener: tokio::net::TcpListener, router: Router) -> tokio::task::JoinHandle<()> {
    let router = router.layer(DefaultBodyLimit::max(256 << 20));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}
