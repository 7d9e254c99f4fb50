"""What a route can be: proxy, openai, chat; a file each."""
