// SPDX-License-Identifier: Apache-2.0
// The time line: newest first, gateways in their colours.

import { h, reconcile } from './dom.js';
import { clock } from './format.js';
import { colour } from './colours.js';

const EVENTS_MAX = 200;

export class EventsView {
  #list;
  #events = new Map();

  constructor(list) {
    this.#list = list;
  }

  clear() {
    this.#events.clear();
    this.#list.replaceChildren();
  }

  add(events) {
    for (const event of events) this.#events.set(event.id ?? `${event.time} ${event.message}`, event);
    const newest = [...this.#events].sort(([, a], [, b]) => b.time - a.time).slice(0, EVENTS_MAX);
    this.#events = new Map(newest);
    reconcile(this.#list, newest, ([id]) => id, ([, event]) => line(event), recolour);
    if (!newest.length) this.#list.replaceChildren(h('li', { class: 'empty' }, 'Nothing happened yet.'));
  }
}

/** A gateway's colour may become known after its events. */
function recolour(item, [, event]) {
  item.querySelector('.dot').className = `dot ${colour(event.node)}`;
}

function line(event) {
  const day = new Date(event.time * 1000);
  return h('li', { class: `event ${event.severity ?? 'info'}` },
    h('time', { datetime: day.toISOString(), title: day.toLocaleString('en-GB') }, clock(event.time)),
    h('span', { class: `dot ${colour(event.node)}`, title: event.node ?? '' }),
    h('span', { class: 'what' }, event.message, event.who ? h('small', {}, ` by ${event.who}`) : null));
}
