// SPDX-License-Identifier: Apache-2.0
// One gateway's HTTP API: requests, and the live stream with reconnection.

const RETRY_FIRST_MS = 300;
const RETRY_MAX_MS = 5000;
const SILENCE_MAX_MS = 25000;

export class ApiError extends Error {
  constructor(problem) {
    super(problem.message ?? 'the gateway gave no reason');
    this.code = problem.code ?? 'internal';
    this.remedy = problem.remedy;
  }
}

export class Api {
  /** base: '' for the gateway that served this page, or https://host:port. */
  constructor(base, token) {
    this.base = base;
    this.token = token;
  }

  async request(method, path, body) {
    const headers = this.token ? { authorization: `Bearer ${this.token}` } : {};
    if (body !== undefined) headers['content-type'] = 'application/json';
    let response;
    try {
      response = await fetch(this.base + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new ApiError({ code: 'unavailable', message: 'the gateway does not answer' });
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new ApiError(answer);
    return answer;
  }

  get(path) {
    return this.request('GET', path);
  }

  post(path, body) {
    return this.request('POST', path, body);
  }

  /** Calls onEvent(kind, data) for each server-sent event and onLink(message or null) when the stream breaks or is there
      again. Returns a function that ends it. (EventSource cannot send a token.) */
  stream(onEvent, onLink) {
    const stop = new AbortController();
    this.#follow(onEvent, onLink, stop.signal);
    return () => stop.abort();
  }

  async #follow(onEvent, onLink, signal) {
    let pause = RETRY_FIRST_MS;
    while (!signal.aborted) {
      try {
        await this.#read(onEvent, () => { pause = RETRY_FIRST_MS; onLink(null); }, signal);
        throw new ApiError({ message: 'the gateway ended the stream' });
      } catch (error) {
        if (signal.aborted) return;
        onLink(error.message);
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(pause * 2, RETRY_MAX_MS);
    }
  }

  async #read(onEvent, onOpen, signal) {
    const quiet = new AbortController();
    const abort = () => quiet.abort();
    signal.addEventListener('abort', abort, { once: true });
    let timer = setTimeout(abort, SILENCE_MAX_MS);
    try {
      const headers = this.token ? { authorization: `Bearer ${this.token}` } : {};
      const response = await fetch(`${this.base}/v1/stream`, { headers, signal: quiet.signal });
      if (!response.ok) throw new ApiError(await response.json().catch(() => ({})));
      onOpen();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(abort, SILENCE_MAX_MS);
        const messages = (rest + value).split('\n\n');
        rest = messages.pop();
        for (const message of messages) dispatch(message, onEvent);
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
    }
  }
}

function dispatch(message, onEvent) {
  let kind = '';
  let data = '';
  for (const line of message.split('\n')) {
    if (line.startsWith('event: ')) kind = line.slice(7);
    else if (line.startsWith('data: ')) data += line.slice(6);
  }
  if (kind && data) onEvent(kind, JSON.parse(data));
}
