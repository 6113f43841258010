//! `/metrics` on its own listener: who may read it, encrypted, and with a certificate that is renewed.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use rcgen::CertifiedKey;
use streamgauge_lifecycle::{
    Deadline, Exposition, ExpositionConfig, HttpDoor, HttpServerConfig, Shutdown, Tasks, TlsConfig,
};
use streamgauge_settings::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const DEADLINE: Duration = Duration::from_secs(10);

fn listening() -> ExpositionConfig {
    ExpositionConfig {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..ExpositionConfig::default()
    }
}

async fn bind(config: &ExpositionConfig) -> Exposition {
    let bound = config.bind("http.metrics").await;
    bound.expect("bound").expect("there is a listener")
}

/// Serves beside a door without routes; says where.
async fn serve(exposition: Exposition) -> (SocketAddr, Tasks, Shutdown) {
    let address = exposition.local_addr().expect("bound");
    let shutdown = Shutdown::new();
    let mut tasks = Tasks::new(shutdown.clone());
    let metrics = Arc::new(|| String::from("up 1\n# EOF\n"));
    let door = HttpDoor {
        listener: TcpListener::bind("127.0.0.1:0").await.expect("bound"),
        metrics: Some(exposition),
        config: HttpServerConfig::default(),
        deadline: Deadline::new(&shutdown, DEADLINE),
    };
    door.open(&mut tasks, metrics, |beside| {
        assert!(beside.is_none(), "they are served there alone");
        Router::new()
    });
    (address, tasks, shutdown)
}

async fn get(address: SocketAddr, path: &str, credentials: Option<(&str, &str)>) -> (u16, String) {
    let mut request = reqwest::Client::new().get(format!("http://{address}{path}"));
    if let Some((name, password)) = credentials {
        request = request.basic_auth(name, Some(password));
    }
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.text().await.expect("a body"))
}

#[tokio::test]
async fn without_an_address_there_is_none() {
    let config = ExpositionConfig::default();
    let bound = config.bind("http.metrics").await;
    assert!(bound.expect("nothing is wrong").is_none());
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_told() {
    let secret = || Secret::from("secret");
    let cases = [
        (
            "has an effect only",
            ExpositionConfig {
                username: String::from("me"),
                password: secret(),
                ..ExpositionConfig::default()
            },
        ),
        (
            "username and password go together",
            ExpositionConfig {
                password: secret(),
                ..listening()
            },
        ),
        (
            "may not hold a colon",
            ExpositionConfig {
                username: String::from("a:b"),
                password: secret(),
                ..listening()
            },
        ),
        (
            "tls.certificate and tls.key go together",
            ExpositionConfig {
                tls: TlsConfig {
                    certificate: Some("metrics.crt".into()),
                    key: None,
                },
                ..listening()
            },
        ),
        (
            "cannot read no-such.crt",
            ExpositionConfig {
                tls: TlsConfig {
                    certificate: Some("no-such.crt".into()),
                    key: Some("no-such.key".into()),
                },
                ..listening()
            },
        ),
    ];
    for (expected, config) in cases {
        let error = config.bind("http.metrics").await.expect_err(expected);
        let text = error.to_string();
        assert!(text.starts_with("http.metrics"), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn only_who_knows_the_password_may_read() {
    let config = ExpositionConfig {
        username: String::from("prometheus"),
        password: Secret::from("right: and wrong"),
        ..listening()
    };
    let (address, tasks, shutdown) = serve(bind(&config).await).await;
    let right = Some(("prometheus", "right: and wrong"));
    let (status, body) = get(address, "/metrics", right).await;
    assert_eq!((status, body.as_str()), (200, "up 1\n# EOF\n"));
    for wrong in [
        None,
        Some(("prometheus", "right")),
        Some(("prometheus", "")),
        Some(("someone", "right: and wrong")),
    ] {
        let (status, body) = get(address, "/metrics", wrong).await;
        assert_eq!(status, 401, "{wrong:?}");
        assert!(!body.contains("up 1"), "{body}");
    }
    let response = reqwest::get(format!("http://{address}/metrics")).await;
    let response = response.expect("an answer");
    assert_eq!(
        response.headers()["www-authenticate"],
        "Basic realm=\"metrics\""
    );
    // Nothing else is there.
    assert_eq!(get(address, "/health", right).await.0, 404);
    shutdown.trigger();
    let _ = tasks.wait(&Deadline::new(&shutdown, DEADLINE)).await;
}

/// A certificate for localhost in these files; the certificate itself.
fn issue(certificate: &Path, key: &Path, at: SystemTime) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed([String::from("localhost")]).expect("a certificate");
    for (path, pem) in [
        (certificate, cert.pem()),
        (key, signing_key.serialize_pem()),
    ] {
        fs::write(path, pem).expect("written");
        let file = File::options().append(true).open(path).expect("there");
        file.set_modified(at).expect("a time");
    }
    cert.der().clone()
}

/// Asks over an encrypted connection, trusting this certificate alone.
async fn get_trusting(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn connections_are_encrypted_with_the_certificate_of_the_day() {
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n * 86_400);
    let first = issue(&certificate, &key, day(1));
    let config = ExpositionConfig {
        tls: TlsConfig {
            certificate: Some(certificate.clone()),
            key: Some(key.clone()),
        },
        ..listening()
    };
    let (address, tasks, shutdown) = serve(bind(&config).await).await;
    let answer = get_trusting(address, &first).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("up 1\n# EOF\n"), "{answer}");

    // Who does not speak TLS learns nothing.
    let plain = reqwest::get(format!("http://{address}/metrics")).await;
    assert!(plain.is_err(), "{plain:?}");

    // Renewed without a restart.
    let second = issue(&certificate, &key, day(2));
    get_trusting(address, &second).await.expect("the new one");
    get_trusting(address, &first)
        .await
        .expect_err("the old one is gone");

    // What cannot be read does not take the last good one away.
    fs::write(&certificate, "nonsense").expect("written");
    get_trusting(address, &second)
        .await
        .expect("still the one before");
    shutdown.trigger();
    let _ = tasks.wait(&Deadline::new(&shutdown, DEADLINE)).await;
}
