import type { TokenReply } from './schema.js'

/** Tokens, and which sign-in they come from: refreshing keeps it, so that calls never change hands. */
export type StoredTokens = TokenReply & { signIn?: string }

/** Where the tokens are kept between calls. */
export type TokenStore = {
  read(): StoredTokens | undefined | Promise<StoredTokens | undefined>
  /** Nothing means: signed out. */
  write(tokens: StoredTokens | undefined): void | Promise<void>
  /** Present when other tabs or processes see the same tokens: the name of the lock that keeps them from refreshing at once. */
  sharedAs?: string
}

/** Forgets everything with the page or process. */
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
 * Keeps the tokens where all tabs of an origin see them. Any script on the page can read them too, so a page that shows
 * other people's HTML is better off with `memoryStore`.
 */
export function localStorageStore(key = 'aggios.tokens', storage: Storage = localStorage): TokenStore {
  return {
    sharedAs: key,
    read() {
      try {
        return JSON.parse(storage.getItem(key) ?? 'null') ?? undefined
      } catch {
        // somebody else wrote it: as good as signed out
        return undefined
      }
    },
    write(tokens) {
      if (tokens) storage.setItem(key, JSON.stringify(tokens))
      else storage.removeItem(key)
    }
  }
}
