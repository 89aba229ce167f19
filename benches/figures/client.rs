//! References: what the same work costs a program that keeps nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::server;

/// `client calls URL N CONCURRENCY`: as many model calls, answers read and thrown away.
/// `client collect URL`: every trace read page by page and kept in a list, as a script would.
pub fn main(arguments: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["calls", url, n, concurrency] => runtime.block_on(calls(url, n.parse()?, concurrency.parse()?)),
        ["collect", url] => runtime.block_on(collect(url)),
        _ => bail!("client calls URL N CONCURRENCY | client collect URL"),
    }
}

async fn calls(url: &str, n: usize, concurrency: usize) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("{url}/v1/chat/completions");
    stream::iter(0..n)
        .map(|number| {
            let prompt = format!("Rate how helpful the answer is.\nQuestion {number}\nAnswer: {}", server::OUTPUT);
            let body = json!({ "model": "gpt-4o-mini", "max_tokens": 300, "messages": [{ "role": "user", "content": prompt }] });
            let call = client.post(&url).bearer_auth("sk-bench").json(&body);
            async move { call.send().await?.error_for_status()?.bytes().await }
        })
        .buffer_unordered(concurrency)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(())
}

async fn collect(url: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (mut traces, mut cursor): (Vec<Value>, Option<String>) = (Vec::new(), None);
    loop {
        let mut query = vec![("limit", "100".to_owned()), ("isRootObservation", "true".to_owned())];
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let mut page: Value = client.get(format!("{url}/api/public/v2/observations")).query(&query).send().await?.error_for_status()?.json().await?;
        if let Value::Array(rows) = page["data"].take() {
            traces.extend(rows);
        }
        match page["meta"]["cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    println!("{}", traces.len());
    Ok(())
}

/// One request over a connection of its own; the body of a 200.
pub fn get(url: &str) -> anyhow::Result<String> {
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("no URL")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{}", head.lines().next().unwrap_or_default());
    // Chunked bodies keep their lengths: good enough for looking something up.
    Ok(body.to_owned())
}
