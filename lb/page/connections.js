// SPDX-License-Identifier: Apache-2.0
// Search in the connection table of the gateway this page talks to.

import { h, reconcile, text } from './dom.js';
import { duration, endpoint, whole, words } from './format.js';

const PAGE_ROWS = 50;
const FIELDS = [
  ['source', 'Client (or network)', '192.0.2.0/24'],
  ['source_port', 'Client port', ''],
  ['destination', 'Destination', ''],
  ['service', 'Service', ''],
  ['backend', 'Backend', ''],
  ['owner', 'Gateway', ''],
  ['origin', 'Accepted by', ''],
];
const STATES = ['', 'established', 'syn', 'udp', 'udp_once', 'fin_client', 'fin_server', 'closing', 'reset'];
const GROUPS = ['', 'source', 'backend', 'service', 'state', 'owner', 'origin', 'destination_port'];
const HEADS = ['Proto', 'Client', 'Destination', 'Backend', 'State', 'Idle', 'Age', 'Gateway', 'Accepted by'];

export class ConnectionsView {
  #api = null;
  #form;
  #table = h('tbody', {});
  #head = h('tr', {});
  #note = h('p', { class: 'hint', role: 'status' });
  #more = h('button', { type: 'button', class: 'quiet', hidden: true }, 'More');
  #rows = [];
  #cursor = null;

  constructor(container) {
    const fields = FIELDS.map(([name, label, example]) => h('label', {}, label, h('input', { name, placeholder: example, autocomplete: 'off', spellcheck: 'false' })));
    this.#form = h('form', { class: 'search', role: 'search', 'aria-label': 'Connections' }, fields,
      h('label', {}, 'State', h('select', { name: 'state' }, STATES.map((name) => h('option', { value: name }, name ? words(name) : 'any')))),
      h('label', {}, 'Count by', h('select', { name: 'by' }, GROUPS.map((name) => h('option', { value: name }, name ? words(name) : 'no, list them')))),
      h('button', {}, 'Search'));
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.search();
    });
    this.#more.addEventListener('click', () => this.#page());
    container.append(this.#form, this.#note, h('div', { class: 'scroll tall' }, h('table', {}, h('thead', {}, this.#head), this.#table)), this.#more);
    text(this.#note, 'What this gateway knows, its own connections and those replicated to it.');
  }

  connect(api) {
    this.#api = api;
    this.#rows = [];
    this.#table.replaceChildren();
    this.#more.hidden = true;
  }

  async search() {
    const query = this.#query();
    const by = query.get('by');
    query.delete('by');
    this.#rows = [];
    this.#cursor = null;
    if (by) await this.#top(query, by);
    else await this.#page();
  }

  #query() {
    const given = [...new FormData(this.#form)].filter(([, value]) => value.trim() !== '');
    return new URLSearchParams(given.map(([name, value]) => [name, value.trim()]));
  }

  async #page() {
    const query = this.#query();
    query.delete('by');
    query.set('limit', PAGE_ROWS);
    if (this.#cursor) query.set('cursor', this.#cursor);
    const page = await this.#ask(`/v1/connections?${query}`);
    if (!page) return;
    this.#rows = [...this.#rows, ...page.connections];
    this.#cursor = page.cursor;
    this.#more.hidden = !page.cursor;
    this.#heads(HEADS);
    text(this.#note, this.#rows.length ? `${whole(this.#rows.length)} shown${page.cursor ? ', there are more' : ''}` : 'No such connection.');
    reconcile(this.#table, this.#rows, (row) => `${row.protocol} ${row.source} ${row.source_port} ${row.destination} ${row.destination_port}`, () => h('tr', {}, HEADS.map(() => h('td', {}))), fillConnection);
  }

  async #top(query, by) {
    query.set('by', by);
    query.set('limit', 20);
    const top = await this.#ask(`/v1/connections/top?${query}`);
    if (!top) return;
    this.#more.hidden = true;
    this.#heads([words(by), 'Connections', 'Share']);
    text(this.#note, `${whole(top.matched)} of ${whole(top.scanned)} connections`);
    this.#table.replaceChildren(...top.rows.map((row) => h('tr', {}, h('td', {}, String(row.key[by] ?? '–')), h('td', { class: 'right' }, whole(row.connections)), h('td', {}, h('meter', { min: 0, max: top.matched || 1, value: row.connections, 'aria-label': 'share' })))));
  }

  #heads(names) {
    this.#head.replaceChildren(...names.map((name) => h('th', { scope: 'col' }, name)));
  }

  async #ask(path) {
    text(this.#note, 'Searching …');
    try {
      return await this.#api.get(path);
    } catch (error) {
      this.#table.replaceChildren();
      text(this.#note, `${error.message}${error.remedy ? ` — ${error.remedy}` : ''}`);
      return null;
    }
  }
}

function fillConnection(tr, row) {
  const values = [row.protocol, endpoint(row.source, row.source_port), endpoint(row.destination, row.destination_port),
    `${row.service ?? '–'}/${row.backend ?? row.target_id}`, words(row.state), duration(row.idle_s), duration(row.age_s), row.owner ?? '–',
    row.origin ?? '–'];
  values.forEach((value, index) => text(tr.children[index], value));
}
