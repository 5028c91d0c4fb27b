//! The function of the clients matrix on lambda_runtime. What all functions of the
//! matrix do is said in ../../../clients_test.go.

use lambda_runtime::streaming::{channel, Body, Response};
use lambda_runtime::{run, service_fn, tracing, Diagnostic, Error, FunctionResponse, LambdaEvent};
use serde_json::{json, Value};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// What a function answers that was asked to fail.
#[derive(Debug)]
struct Refused;

impl From<Refused> for Diagnostic {
    fn from(_: Refused) -> Self {
        Diagnostic { error_type: "Refused".into(), error_message: "as asked".into() }
    }
}

type Answer = FunctionResponse<Value, Body>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    run(service_fn(handle)).await
}

async fn handle(event: LambdaEvent<Value>) -> Result<Answer, Refused> {
    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    match event.payload["do"].as_str() {
        Some("fail") => return Err(Refused),
        Some("log") => tracing::warn!("a message"),
        Some("stream") => return Ok(FunctionResponse::StreamingResponse(stream())),
        Some("sleep") => tokio::time::sleep(Duration::from_secs(3600)).await,
        _ => {}
    }
    let config = &event.context.env_config;
    Ok(FunctionResponse::BufferedResponse(json!({
        "requestId": event.context.request_id,
        "function": config.function_name,
        "version": config.version,
        "memory": config.memory,
        "calls": calls,
        "event": event.payload,
    })))
}

/// Sends the second chunk when the test has read the first one.
fn stream() -> Response<Body> {
    let (mut sender, body) = channel();
    tokio::spawn(async move {
        let _ = sender.send_data("first ".into()).await;
        while !std::path::Path::new("go-on").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = sender.send_data("second".into()).await;
    });
    Response::from(body)
}
