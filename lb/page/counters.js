// SPDX-License-Identifier: Apache-2.0
// What the packet path does with packets, by reason; alarms first.

import { h, reconcile, text } from './dom.js';
import { scaled, whole, words } from './format.js';

const ORDER = { alarm: 0, sent: 1, pass: 2, drop: 3, note: 4 };

export function updateCounters(container, counters) {
  if (!container.firstElementChild) {
    container.append(h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, ['Verdict', 'Packets/s', 'Packets'].map((name, index) => h('th', { scope: 'col', class: index ? 'right' : '' }, name)))), h('tbody', {}))), h('p', { class: 'empty' }));
  }
  const seen = counters.filter((row) => row.packets).sort((a, b) => ORDER[a.kind] - ORDER[b.kind] || b.packets - a.packets);
  text(container.querySelector('.empty'), seen.length ? '' : 'No packet seen yet.');
  reconcile(container.querySelector('tbody'), seen, (row) => row.reason, () => h('tr', {}, h('td', { class: 'reason' }, h('span', {}), h('small', {})), h('td', { class: 'right' }), h('td', { class: 'right' })), (tr, row) => {
    const cells = tr.children;
    tr.className = row.kind;
    text(cells[0].firstElementChild, words(row.reason));
    text(cells[0].lastElementChild, row.meaning);
    text(cells[1], scaled(row.packets_per_s));
    text(cells[2], whole(row.packets));
  });
}
