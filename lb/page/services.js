// SPDX-License-Identifier: Apache-2.0
// Services with their backends: state, share and live rates; drain and weight in place.

import { attribute, h, reconcile, text, toast } from './dom.js';
import { drawSparkline, sparkline } from './history.js';
import { endpoint, scaled, whole, words } from './format.js';

const HEADS = [['Backend', ''], ['Address', ''], ['State', ''], ['Weight', 'right'], ['Packets/s', 'right'], ['Bit/s', 'right'], ['New/s', 'right'], ['Active', 'right'], ['Share', ''], ['', '']];
// Beyond this many backends of a service only a part is shown until asked for.
const ROWS_SHOWN = 12;
const OPEN_FIRST = 2;

export class ServicesView {
  #container;
  #api = null;
  #whole = new Set();
  #last = [];

  constructor(container) {
    this.#container = container;
  }

  connect(api) {
    this.#api = api;
  }

  update(services, backends, history) {
    this.#last = [services, backends, history];
    if (!services.length) {
      this.#container.replaceChildren(h('p', { class: 'empty' }, 'No services yet. ', h('code', {}, 'lbctl apply -f FILE'), ' adds them.'));
      return;
    }
    this.#container.querySelector('.empty')?.remove();
    reconcile(this.#container, services, (service) => service.name, (service) => this.#block(service),
      (block, service) => this.#fill(block, service, backends.filter((row) => row.service === service.name), history));
  }

  #block(service) {
    const healthy = service.backends_up === service.backend_count;
    const block = h('details', { class: 'service', role: 'group', 'aria-label': `Service ${service.name}` },
      h('summary', { class: 'service-head' }, h('h3', {}), h('span', { class: 'where' }), h('span', { class: 'how' }), h('span', { class: 'up' }), sparkline(`packets per second of ${service.name}, last 90 seconds`), h('span', { class: 'rate' })),
      h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, HEADS.map(([name, kind]) => h('th', { scope: 'col', class: kind }, name)))), h('tbody', {}))),
      h('button', { type: 'button', class: 'quiet all', hidden: true, onclick: (event) => this.#showAll(event) }));
    // Many healthy services are a list of lines; what needs attention is open from the start.
    block.open = service.backend_count > 0 && (!healthy || this.#container.children.length < OPEN_FIRST);
    return block;
  }

  #showAll(event) {
    const name = event.currentTarget.closest('details').dataset.key;
    if (!this.#whole.delete(name)) this.#whole.add(name);
    this.update(...this.#last);
  }

  #fill(block, service, backends, history) {
    text(block.querySelector('h3'), service.name);
    text(block.querySelector('.where'), `${service.protocol} ${endpoint(service.address, service.port)}`);
    text(block.querySelector('.how'), `${service.forward} · ${service.scheduler}`);
    const up = block.querySelector('.up');
    text(up, service.backend_count ? `${service.backends_up} of ${service.backend_count} up` : 'by the gateways themselves');
    up.className = `up ${service.backends_up === service.backend_count ? 'good' : service.backends_up ? 'some' : 'bad'}`;
    block.querySelector('.scroll').hidden = !service.backend_count;
    drawSparkline(block.querySelector('.spark'), history.get(`service ${service.name}`));
    text(block.querySelector('.rate'), `${scaled(service.cluster_traffic.packets_per_s)} packets/s · ${whole(service.cluster_traffic.connections_active)} active`);
    const shown = this.#whole.has(service.name) ? backends : backends.slice(0, ROWS_SHOWN);
    const most = Math.max(...backends.map((row) => row.cluster_traffic.connections_active), 1);
    reconcile(block.querySelector('tbody'), shown, (row) => row.name, (row) => this.#row(row), (tr, row) => fillRow(tr, row, most));
    const more = block.querySelector('.all');
    more.hidden = backends.length <= ROWS_SHOWN;
    text(more, shown.length < backends.length ? `Show all ${backends.length} backends` : 'Show fewer');
  }

  #row(backend) {
    const path = `/v1/backends/${encodeURIComponent(backend.service)}/${encodeURIComponent(backend.name)}`;
    const toggle = h('button', { type: 'button', class: 'quiet toggle' });
    toggle.addEventListener('click', () => this.#do(`${path}/${toggle.dataset.action}`, undefined, `${backend.service}/${backend.name}: ${toggle.dataset.action}`));
    const weight = h('input', { type: 'number', min: 0, max: 65535, class: 'weight', 'aria-label': `Weight of ${backend.service}/${backend.name}` });
    weight.addEventListener('change', () => this.#do(`${path}/weight`, { weight: Number(weight.value) }, `${backend.service}/${backend.name}: weight ${weight.value}`));
    const cells = HEADS.map(([, kind]) => h('td', { class: kind }));
    cells[3].append(weight);
    cells[8].append(h('meter', { min: 0, max: 1, 'aria-label': `Share of connections on ${backend.name}` }));
    cells[9].append(toggle);
    return h('tr', {}, cells);
  }

  async #do(path, body, message) {
    try {
      await this.#api.post(path, body);
      toast(message);
    } catch (error) {
      toast(`${error.message}${error.remedy ? ` — ${error.remedy}` : ''}`, 'error');
    }
  }
}

function fillRow(tr, row, most) {
  const cells = tr.children;
  text(cells[0], row.name);
  text(cells[1], endpoint(row.address, row.port));
  text(cells[2], words(row.state));
  cells[2].className = `badge ${row.state}`;
  attribute(cells[2], 'title', row.reason);
  const weight = cells[3].firstElementChild;
  if (document.activeElement !== weight && weight.value !== String(row.weight)) weight.value = row.weight;
  text(cells[4], scaled(row.cluster_traffic.packets_per_s));
  text(cells[5], scaled(row.cluster_traffic.bits_per_s));
  text(cells[6], scaled(row.cluster_traffic.connections_new_per_s));
  text(cells[7], whole(row.cluster_traffic.connections_active));
  cells[8].firstElementChild.value = row.cluster_traffic.connections_active / most;
  const toggle = cells[9].firstElementChild;
  toggle.dataset.action = row.drain ? 'undrain' : 'drain';
  text(toggle, row.drain ? 'Undrain' : 'Drain');
  attribute(toggle, 'aria-label', `${row.drain ? 'Undrain' : 'Drain'} ${row.service}/${row.name}`);
}
