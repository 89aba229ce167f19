//! Load on a route of chat completions that takes little of the machine itself: a thread and a connection each, with no
//! HTTP client between.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::report::percentile;

/// Requests of one kind, over connections that stay open.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: usize,
    pub requests: usize,
    /// A second, over all connections. `None`: each as soon as its connection is free.
    pub rate: Option<f64>,
    /// What the n-th one asks.
    pub prompt: fn(usize) -> String,
}

#[derive(Debug)]
pub struct Done {
    /// In ms, sorted.
    took: Vec<f64>,
    pub wall: Duration,
}

impl Done {
    /// In ms.
    pub fn percentile(&self, share: f64) -> f64 {
        percentile(&self.took, share)
    }

    pub fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.wall.as_secs_f64()
    }
}

impl Load {
    /// `base`: of the server; every answer has to be a 200.
    pub fn send(self, base: &str, model: &str) -> anyhow::Result<Done> {
        let address = base.strip_prefix("http://").context("no URL")?;
        let mut connections = (0..self.connections).map(|_| Connection::open(address)).collect::<anyhow::Result<Vec<_>>>()?;
        let begin = Instant::now();
        let took = thread::scope(|scope| {
            let threads = connections.iter_mut().enumerate().map(|(first, connection)| scope.spawn(move || self.drive(connection, first, begin, model)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a connection's thread panicked"))?).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let wall = begin.elapsed();
        let mut took = took.concat();
        took.sort_by(f64::total_cmp);
        Ok(Done { took, wall })
    }

    fn drive(self, connection: &mut Connection, first: usize, begin: Instant, model: &str) -> anyhow::Result<Vec<f64>> {
        let mut took = Vec::with_capacity(self.requests / self.connections + 1);
        for number in (first..self.requests).step_by(self.connections) {
            let request = connection.request(model, &(self.prompt)(number));
            let mut sent = Instant::now();
            if let Some(rate) = self.rate {
                let slot = begin + Duration::from_secs_f64(number as f64 / rate);
                match slot.checked_duration_since(sent) {
                    Some(early) => {
                        thread::sleep(early);
                        sent = Instant::now();
                    }
                    // An answer that held the next request up counts for that one too.
                    None => sent = slot,
                }
            }
            connection.ask(&request)?;
            took.push(sent.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(took)
    }
}

struct Connection {
    stream: BufReader<TcpStream>,
    address: String,
    body: Vec<u8>,
}

impl Connection {
    fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream), address: address.to_owned(), body: Vec::new() })
    }

    fn request(&self, model: &str, prompt: &str) -> String {
        let body = json!({ "model": model, "max_tokens": 300, "messages": [{ "role": "user", "content": prompt }] }).to_string();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
    }

    fn ask(&mut self, request: &str) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length, mut status) = (String::new(), None, None);
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            match text.split_once(':') {
                _ if status.is_none() => status = Some(text.to_owned()),
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = Some(value.trim().parse::<usize>()?),
                _ => {}
            }
        }
        self.body.resize(length.context("an answer without its length")?, 0);
        self.stream.read_exact(&mut self.body)?;
        let status = status.unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 200"), "{status}: {}", String::from_utf8_lossy(&self.body));
        Ok(())
    }
}
