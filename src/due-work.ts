/**
 * Works on all items that are due: claims a batch of them, and claims the next one when all have begun, until a batch is not
 * full. `claim` leases its items to this process for longer than a batch takes. When the process dies, another one gets them
 * after the lease.
 *
 * After `stopping` no item begins any more; claimed ones wait for the end of their lease. When `work` rejects, no other item
 * begins, and the call rejects with its error when the items under way have ended. So `work` catches what is the fault of
 * one item.
 */
export async function processDue<Item>({
  claim,
  batch,
  concurrency = 1,
  work,
  stopping
}: {
  claim: (batch: number) => Promise<Item[]>
  batch: number
  concurrency?: number
  work: (item: Item) => Promise<void>
  stopping: AbortSignal
}): Promise<void> {
  const underWay = new Set<Promise<void>>()
  const failures: unknown[] = []
  const mayBegin = () => failures.length === 0 && !stopping.aborted

  async function begin(item: Item): Promise<void> {
    const working = work(item)
      .catch((err) => void failures.push(err))
      .finally(() => void underWay.delete(working))
    underWay.add(working)
    if (underWay.size >= concurrency) await Promise.race(underWay)
  }

  try {
    for (let isFull = true; isFull && mayBegin(); ) {
      const claimed = await claim(batch)
      isFull = claimed.length === batch
      for (const item of claimed) if (mayBegin()) await begin(item)
    }
  } finally {
    await Promise.all(underWay)
  }
  if (failures.length > 0) throw failures[0]
}
