import type { TokenReply } from './schema.js'

/** Tokens with the id of their sign-in. A refresh keeps the id, so calls of one sign-in never use tokens of another. */
export type StoredTokens = TokenReply & { signIn?: string }

/** Keeps the tokens between calls. */
export type TokenStore = {
  read(): StoredTokens | undefined | Promise<StoredTokens | undefined>
  /** Undefined removes the tokens. */
  write(tokens: StoredTokens | undefined): void | Promise<void>
  /** The name of a lock, when other tabs or processes share the tokens: only one of them refreshes at a time. */
  sharedAs?: string
}

/** Keeps the tokens in memory, until the page or the process ends. */
export function memoryStore(): TokenStore {
  let kept: StoredTokens | undefined
  return {
    read: () => kept,
    write: (tokens) => {
      kept = tokens
    }
  }
}

/**
 * Keeps the tokens in localStorage, which all tabs of an origin share. Any script on the page can read them, so use
 * `memoryStore` on a page that shows other people's HTML.
 */
export function localStorageStore(key = 'aggios.tokens', storage: Storage = localStorage): TokenStore {
  return {
    sharedAs: key,
    read() {
      try {
        return JSON.parse(storage.getItem(key) ?? 'null') ?? undefined
      } catch {
        // another program wrote this key: treat it as signed out
        return undefined
      }
    },
    write(tokens) {
      if (tokens) storage.setItem(key, JSON.stringify(tokens))
      else storage.removeItem(key)
    }
  }
}
