//! Toxiproxy, by its HTTP interface: proxies that can be made slow, narrow, silent or treacherous.

use serde_json::{Value, json};

use crate::failure::Failure;

/// The direction that a toxic works in.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

/// Trouble for the connections of a proxy.
#[derive(Clone, Copy, Debug)]
pub enum Toxic {
    /// Each piece comes so much later, give or take the second number; in milliseconds.
    Latency(u32, u32),
    /// So many KB per second.
    Bandwidth(u32),
    /// Nothing comes through, and the connection is closed after so many milliseconds.
    Timeout(u32),
    /// The connection is reset after so many milliseconds.
    Reset(u32),
}

impl Toxic {
    fn kind(self) -> &'static str {
        match self {
            Self::Latency(..) => "latency",
            Self::Bandwidth(_) => "bandwidth",
            Self::Timeout(_) => "timeout",
            Self::Reset(_) => "reset_peer",
        }
    }

    fn attributes(self) -> Value {
        match self {
            Self::Latency(latency, jitter) => json!({ "latency": latency, "jitter": jitter }),
            Self::Bandwidth(rate) => json!({ "rate": rate }),
            Self::Timeout(timeout) | Self::Reset(timeout) => json!({ "timeout": timeout }),
        }
    }
}

/// A running toxiproxy.
#[derive(Clone)]
pub struct Toxiproxy {
    api: String,
    client: reqwest::Client,
}

/// One of its proxies.
#[derive(Clone)]
pub struct Proxy {
    toxiproxy: Toxiproxy,
    name: String,
}

impl Toxiproxy {
    /// The one whose interface listens on this port.
    pub fn new(port: u16) -> Self {
        Self {
            api: format!("http://127.0.0.1:{port}"),
            client: reqwest::Client::new(),
        }
    }

    /// Makes a proxy, or makes one of that name anew.
    pub async fn proxy(&self, name: &str, listen: u16, upstream: u16) -> Result<Proxy, Failure> {
        let proxy = self.existing(name);
        // It is not there the first time.
        let _ = self.delete(&format!("/proxies/{name}")).await;
        let body = json!({
            "name": name,
            "listen": format!("127.0.0.1:{listen}"),
            "upstream": format!("127.0.0.1:{upstream}"),
            "enabled": true,
        });
        self.post("/proxies", &body).await?;
        Ok(proxy)
    }

    /// A proxy that was made before.
    pub fn existing(&self, name: &str) -> Proxy {
        Proxy {
            toxiproxy: self.clone(),
            name: name.to_owned(),
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), Failure> {
        let what = || format!("toxiproxy {path} {body}");
        let answer = self.client.post(format!("{}{path}", self.api)).json(body);
        let answer = answer.send().await.map_err(Failure::http(what()))?;
        answer.error_for_status().map_err(Failure::http(what()))?;
        Ok(())
    }

    /// The names of what stands in a list.
    async fn names(&self, path: &str) -> Result<Vec<String>, Failure> {
        let what = || format!("toxiproxy GET {path}");
        let answer = self.client.get(format!("{}{path}", self.api)).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(Failure::http(what()))?;
        let list: Value = answer.json().await.map_err(Failure::http(what()))?;
        let entries = list.as_array().into_iter().flatten();
        let names = entries.filter_map(|entry| entry["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    async fn delete(&self, path: &str) -> Result<(), Failure> {
        let what = || format!("toxiproxy DELETE {path}");
        let answer = self.client.delete(format!("{}{path}", self.api));
        let answer = answer.send().await.map_err(Failure::http(what()))?;
        answer.error_for_status().map_err(Failure::http(what()))?;
        Ok(())
    }
}

impl Proxy {
    /// Adds a toxic, for this share of the connections; one of each kind at a time.
    pub async fn add(&self, toxic: Toxic, stream: Stream, share: f64) -> Result<(), Failure> {
        let stream = match stream {
            Stream::Up => "upstream",
            Stream::Down => "downstream",
        };
        let body = json!({
            "name": toxic.kind(),
            "type": toxic.kind(),
            "stream": stream,
            "toxicity": share,
            "attributes": toxic.attributes(),
        });
        let path = format!("/proxies/{}/toxics", self.name);
        self.toxiproxy.post(&path, &body).await
    }

    /// Takes all toxics away.
    pub async fn heal(&self) -> Result<(), Failure> {
        let path = format!("/proxies/{}/toxics", self.name);
        for toxic in self.toxiproxy.names(&path).await? {
            self.toxiproxy.delete(&format!("{path}/{toxic}")).await?;
        }
        Ok(())
    }

    /// Sends what comes from now on elsewhere, `HOST:PORT`.
    pub async fn upstream(&self, address: &str) -> Result<(), Failure> {
        let path = format!("/proxies/{}", self.name);
        let body = json!({ "upstream": address, "enabled": true });
        self.toxiproxy.post(&path, &body).await
    }

    /// Lets connections through or cuts them all.
    pub async fn enable(&self, enabled: bool) -> Result<(), Failure> {
        let path = format!("/proxies/{}", self.name);
        self.toxiproxy
            .post(&path, &json!({ "enabled": enabled }))
            .await
    }
}
