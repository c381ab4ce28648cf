// SPDX-License-Identifier: Apache-2.0
// Which clusters this page watches. Addresses stay in the browser, tokens only until the tab is closed.

import { h } from './dom.js';
import { Api } from './api.js';

const PLACES = 'rainlb.clusters';
const TOKENS = 'rainlb.tokens';
const PLACES_MAX = 32;

const read = (store, key, empty) => {
  try {
    return JSON.parse(store.getItem(key)) ?? empty;
  } catch {
    return empty;
  }
};

export class Clusters {
  #nav;
  #choose;
  #names = new Map();
  #places = read(localStorage, PLACES, []);
  #tokens = read(sessionStorage, TOKENS, {});
  current = '';

  /** choose(api) is called when another cluster is to be shown. */
  constructor(nav, dialog, choose) {
    this.#nav = nav;
    this.#choose = choose;
    this.#takeKey();
    dialog.addEventListener('close', () => {
      if (dialog.returnValue === 'add') this.#add(new FormData(dialog.querySelector('form')));
      dialog.querySelector('form').reset();
    });
    this.#dialog = dialog;
    this.#draw();
  }

  #dialog;

  /** The key that `lbctl page` put into the address, out of sight of history and bookmarks. */
  #takeKey() {
    const key = new URLSearchParams(location.hash.slice(1)).get('key');
    if (!key) return;
    this.#remember('', key);
    history.replaceState(null, '', location.pathname);
  }

  #remember(place, token) {
    this.#tokens[place] = token;
    sessionStorage.setItem(TOKENS, JSON.stringify(this.#tokens));
  }

  #add(form) {
    const place = new URL(form.get('url')).origin;
    this.#remember(place, form.get('token'));
    if (!this.#places.includes(place) && this.#places.length < PLACES_MAX) this.#places.push(place);
    localStorage.setItem(PLACES, JSON.stringify(this.#places));
    this.show(place);
  }

  #remove(place) {
    this.#places = this.#places.filter((other) => other !== place);
    localStorage.setItem(PLACES, JSON.stringify(this.#places));
    this.show('');
  }

  show(place) {
    this.current = place;
    this.#draw();
    this.#choose(new Api(place, this.#tokens[place]));
  }

  /** The cluster's own name, once known. */
  named(name) {
    if (this.#names.get(this.current) === name) return;
    this.#names.set(this.current, name);
    this.#draw();
  }

  #draw() {
    const tabs = ['', ...this.#places].map((place) => {
      const label = this.#names.get(place) ?? (place ? new URL(place).host : 'this cluster');
      return h('span', { class: 'tab' },
        h('button', { type: 'button', 'aria-current': place === this.current ? 'page' : null, onclick: () => this.show(place) }, label),
        place ? h('button', { type: 'button', class: 'close', 'aria-label': `Forget ${label}`, onclick: () => this.#remove(place) }, '×') : null);
    });
    const add = h('button', { type: 'button', class: 'quiet add', 'aria-label': 'Add a cluster', title: 'Add a cluster', onclick: () => this.#dialog.showModal() }, '+');
    this.#nav.replaceChildren(...tabs, add);
  }
}
