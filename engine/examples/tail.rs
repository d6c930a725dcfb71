//! Prints the events of a store that another process writes, as they come.
//!
//! ```sh
//! cargo run -p thalweg --example tail -- write data   # in one terminal: appends a line of its input at a time
//! cargo run -p thalweg --example tail -- data         # in others, as often as you like
//! ```
//!
//! Kill the writer and start it again: those that follow go on.

use std::error::Error;
use std::io::BufRead;

use thalweg::Store;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", path] => write(path),
        [path] => tail(path),
        _ => Err("usage: tail STORE, or tail write STORE".into()),
    }
}

fn tail(path: &str) -> Result<(), Box<dyn Error>> {
    let follower = Store::open_follower(path)?;
    println!("{} events so far", follower.delivered());
    for event in follower.subscribe(0)? {
        let event = event?;
        let payload = String::from_utf8_lossy(event.payload());
        println!("{:>6}  {}", event.global(), payload);
    }
    Ok(())
}

fn write(path: &str) -> Result<(), Box<dyn Error>> {
    let store = Store::open(path)?;
    let lines = store.appender("lines")?;
    for line in std::io::stdin().lock().lines() {
        lines.append(line?)?.wait()?;
    }
    store.close()?;
    Ok(())
}
